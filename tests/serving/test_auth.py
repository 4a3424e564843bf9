from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rag_fti.errors import ConfigError
from rag_fti.feature_store import FeatureStore
from serving.auth import (
    SCOPES,
    KeyFile,
    Principal,
    RateLimiter,
    add_key,
    read_keys,
    remove_key,
)
from tests.inference.corpus import fill
from tests.serving.conftest import Running, Start, start

QUESTION = {"messages": [{"role": "user", "content": "Who keeps the cellar key?"}]}


def test_a_key_is_stored_as_a_hash_and_found_again(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    key, secret = add_key(path, name="ada", scopes=["chat"], collections=["a", "b"])
    assert secret not in path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    found = KeyFile(path).find(secret)
    assert found == Principal(key.id, frozenset({"chat"}), ("a", "b"))
    for wrong in ("", secret[:-1], secret + "x", secret.upper(), "ключ", "\ud800", key.sha256):
        assert KeyFile(path).find(wrong) is None


def test_names_scopes_and_files_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    add_key(path, name="ada", scopes=["chat"], collections=[])
    for name, scopes in (("ada", ["chat"]), ("b", ["fly"]), ("b", []), ("b b", ["chat"])):
        with pytest.raises(ConfigError):
            add_key(path, name=name, scopes=scopes, collections=[])
    with pytest.raises(ConfigError, match="nobody"):
        remove_key(path, "nobody")
    remove_key(path, "ada")
    assert read_keys(path) == []
    for text in (
        "[]",
        "keys: 3",
        "keys: [{id: a}]",
        "keys: [3]",
        "{",
        "keys: [{id: a, name: a, sha256: short, scopes: [chat], collections: []}]",
        f"keys: [{{id: a, name: a, sha256: {'0' * 63}a, scopes: [chat], collections: handbook}}]",
        f"keys: [{{id: 7, name: a, sha256: {'0' * 63}a, scopes: [chat], collections: [a]}}]",
        f"keys: [{{id: a, name: a, sha256: {'0' * 63}a, scopes: [chat], collections: [a], "
        "requests_per_minute: '60'}]",
        f"keys: [{{id: a, name: a, sha256: {'0' * 63}a, scopes: [chat], collections: [a], "
        "requests_per_minute: -1}]",
    ):
        path.write_text(text)
        with pytest.raises(ConfigError):
            read_keys(path)
    with pytest.raises(ConfigError, match="keys add"):
        KeyFile(tmp_path / "missing.yaml")


def test_keys_that_are_added_and_removed_at_once_are_all_kept_to(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    for number in range(8):
        add_key(path, name=f"old{number}", scopes=["chat"], collections=[])
    with ThreadPoolExecutor(16) as threads:
        changes = [threads.submit(remove_key, path, f"old{n}") for n in range(8)]
        for n in range(8):
            new = {"name": f"new{n}", "scopes": ["chat"], "collections": []}
            changes.append(threads.submit(add_key, path, **new))  # type: ignore[arg-type]
        for change in changes:
            change.result()
    assert {key.name for key in read_keys(path)} == {f"new{n}" for n in range(8)}


def test_the_bucket_refills_evenly() -> None:
    limiter = RateLimiter(60)
    who = Principal("k", frozenset({"chat"}), None, requests_per_minute=3)
    assert [limiter.wait_seconds(who, now=0.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert limiter.wait_seconds(who, now=0.0) == pytest.approx(20.0)
    assert limiter.wait_seconds(who, now=19.0) == pytest.approx(1.0)
    assert limiter.wait_seconds(who, now=20.5) == 0.0
    assert limiter.wait_seconds(who, now=1e6) == 0.0
    free = Principal("f", frozenset(), None)
    assert RateLimiter(0).wait_seconds(free) == 0.0


ROUTES: list[tuple[str, str, Any, str]] = [
    ("POST", "/v1/chat/completions", QUESTION, "chat"),
    ("GET", "/v1/models", None, "chat"),
    ("POST", "/v1/feedback", {"response_id": "x"}, "chat"),
    ("GET", "/v1/lineage/x", None, "chat"),
    ("POST", "/v1/search", {"query": "x"}, "search"),
    ("POST", "/v1/embeddings", {"input": "x"}, "search"),
    ("POST", "/v1/documents", {"source": "x.txt", "text": "hello"}, "ingest"),
    ("DELETE", "/v1/documents/x", None, "ingest"),
    ("GET", "/metrics", None, "admin"),
]


def test_every_route_asks_for_its_scope(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    secrets = {
        scope: add_key(path, name=scope, scopes=[scope], collections=[])[1] for scope in SCOPES
    }
    server = start(serving__keys_file=str(path))
    with server.client() as client:
        for method, route, body, needed in ROUTES:
            response = client.request(method, route, json=body)
            assert response.status_code == 401, route
            assert response.headers["www-authenticate"] == "Bearer"
            for scope, secret in secrets.items():
                response = client.request(
                    method, route, json=body, headers={"Authorization": f"Bearer {secret}"}
                )
                if scope in (needed, "admin"):
                    assert response.status_code not in (401, 403), (route, scope)
                else:
                    assert response.status_code == 403, (route, scope)
        for route in ("/health/live", "/health/ready", "/version", "/"):
            assert client.get(route).status_code == 200
        for header in (
            "Basic abc",
            "Bearer",
            "bearer x",
            f"Token {secrets['chat']}",
            "Bearer \xff",
        ):
            headers = {"Authorization": header.encode("latin-1")}
            assert client.get("/v1/models", headers=headers).status_code == 401  # type: ignore[arg-type]


def test_a_revoked_key_is_refused_without_restart(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    _, secret = add_key(path, name="ada", scopes=["chat"], collections=[])
    server = start(serving__keys_file=str(path))
    with server.client(secret) as client:
        assert client.get("/v1/models").status_code == 200
        remove_key(path, "ada")
        deadline = time.monotonic() + 5
        while client.get("/v1/models").status_code == 200 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert client.get("/v1/models").status_code == 401
        path.unlink()
        add_key(path, name="bo", scopes=["admin"], collections=[])
        path.write_text("nonsense: [")
        time.sleep(0.4)
        assert client.get("/health/ready").json()["status"] == "degraded"


def test_a_key_s_requests_per_minute(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    _, secret = add_key(path, name="ada", scopes=["chat"], collections=[], requests_per_minute=2)
    with start(serving__keys_file=str(path)).client(secret) as client:
        responses = [client.get("/v1/models") for _ in range(3)]
    assert [r.status_code for r in responses] == [200, 200, 429]
    assert 1 <= int(responses[2].headers["retry-after"]) <= 30
    assert responses[2].json()["error"]["code"] == "rate_limit_exceeded"


SECRETS = {name: f"The {name} password is {name}-swordfish." for name in ("red", "green", "blue")}


@pytest.fixture(scope="module")
def tenants(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server with three collections and a key for every combination of them."""
    directory = tmp_path_factory.mktemp("tenants")
    path = directory / "keys.yaml"
    keys: dict[frozenset[str], str] = {}
    for number in range(1, 8):
        names = frozenset(n for bit, n in enumerate(SECRETS) if number >> bit & 1)
        _, secret = add_key(
            path,
            name=f"k{number}",
            scopes=["chat", "search", "ingest"],
            collections=sorted(names),
        )
        keys[names] = secret
    factory = start.__wrapped__(directory)  # type: ignore[attr-defined]
    server = next(factory)(serving__keys_file=str(path), corpus={"public.md": "Nothing here."})
    documents = {
        name: fill(server.services.store, {f"{name}.md": text}, collection=name)[0]
        for name, text in SECRETS.items()
    }
    with server.client() as client:
        yield client, keys, documents
    factory.close()


FILTERS = st.sampled_from(
    [
        None,
        "true",
        "collection IS NOT NULL",
        "collection = 'blue' OR collection = 'red' OR collection = 'green'",
        "source LIKE '%.md'",
        "1=1) OR (1=1",
        "source = '' OR '1'='1'",
        "collection NOT IN ('')",
        "page IS NULL OR true",
    ]
)
WANTED = st.sampled_from([None, "red", "green", "blue", "default", "*", "red' OR '1'='1", ""])


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    names=st.sets(st.sampled_from(sorted(SECRETS)), min_size=1).map(frozenset),
    route=st.sampled_from(["search", "chat", "stream", "document", "delete", "push", "lineage"]),
    question=st.sampled_from(
        ["What is the password?", "red green blue swordfish", "Tell me the blue password"]
    ),
    where=FILTERS,
    wanted=WANTED,
    target=st.sampled_from(sorted(SECRETS)),
)
def test_tenants_never_see_one_another_s_documents(
    tenants: Any,
    names: frozenset[str],
    route: str,
    question: str,
    where: str | None,
    wanted: str | None,
    target: str,
) -> None:
    client, keys, documents = tenants
    headers = {"Authorization": f"Bearer {keys[names]}"}
    fields = {"filter": where, "collection": wanted, "k": 50}
    if route == "search":
        response = client.post("/v1/search", json={"query": question, **fields}, headers=headers)
    elif route in ("chat", "stream"):
        body = {
            "messages": [{"role": "user", "content": question}],
            "stream": route == "stream",
            **fields,
        }
        response = client.post("/v1/chat/completions", json=body, headers=headers)
    elif route == "document":
        response = client.get(f"/v1/documents/{documents[target]}", headers=headers)
        assert response.status_code == (200 if target in names else 404)
    elif route == "delete" and target not in names:
        response = client.delete(f"/v1/documents/{documents[target]}", headers=headers)
        assert response.status_code == 404
    elif route == "push":
        foreign = next((name for name in SECRETS if name not in names), "default")
        body = {"source": "x.txt", "text": "pushed", "collection": foreign}
        response = client.post("/v1/documents", json=body, headers=headers)
        assert response.status_code == 403
    else:
        asked = client.post(
            "/v1/chat/completions",
            json={"messages": [{"role": "user", "content": question}]},
            headers=headers,
        ).json()
        others = [secret for owner, secret in keys.items() if owner != names]
        response = client.get(
            f"/v1/lineage/{asked['id']}", headers={"Authorization": f"Bearer {others[0]}"}
        )
        assert response.status_code == 404
    assert response.status_code < 500
    for name, text in SECRETS.items():
        if name not in names:
            assert f"{name}-swordfish" not in response.text
            assert documents[name] not in response.text or route in ("document", "delete")
            assert text not in response.text


def test_an_admin_of_one_collection_reads_no_answers_from_others(
    start: Start, tmp_path: Path
) -> None:
    path = tmp_path / "keys.yaml"
    secrets = {
        name: add_key(path, name=name, scopes=[scope], collections=[collection])[1]
        for name, scope, collection in (
            ("reader", "chat", "default"),
            ("own", "admin", "default"),
            ("foreign", "admin", "elsewhere"),
            ("all", "admin", "*"),
        )
    }
    server = start(serving__keys_file=str(path))
    with server.client() as client:

        def ask(who: str, method: str, route: str, **options: Any) -> httpx.Response:
            headers = {"Authorization": f"Bearer {secrets[who]}"}
            return client.request(method, route, headers=headers, **options)

        answer = ask("reader", "POST", "/v1/chat/completions", json=QUESTION).json()
        lineage = f"/v1/lineage/{answer['id']}"
        seen = {who: ask(who, "GET", lineage).status_code for who in secrets}
        assert seen == {"reader": 200, "own": 200, "foreign": 404, "all": 200}
        rating = {"response_id": answer["id"], "rating": 1}
        rated = {who: ask(who, "POST", "/v1/feedback", json=rating).status_code for who in secrets}
        assert rated == {"reader": 201, "own": 201, "foreign": 404, "all": 201}


def test_a_key_without_collections_may_push_nowhere(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    _, secret = add_key(path, name="ada", scopes=["ingest"], collections=["a"])
    path.write_text(
        path.read_text().replace("  - a\n", "").replace("collections:", "collections: []")
    )
    assert read_keys(path)[0].collections == ()
    with start(serving__keys_file=str(path)).client(secret) as client:
        pushed = client.post("/v1/documents", json={"source": "x.txt", "text": "hello"})
    assert pushed.status_code == 403


def test_without_keys_only_loopback(tmp_path: Path) -> None:
    from rag_fti.config import load_settings
    from serving.server import check_exposure

    for host in ("127.0.0.1", "localhost", "::1", "127.1.2.3"):
        check_exposure(load_settings(values={"serving.host": host}, environment={}))
    for host in ("0.0.0.0", "::", "192.168.1.4", "example.org", ""):
        with pytest.raises(ConfigError, match="keys add"):
            check_exposure(load_settings(values={"serving.host": host}, environment={}))
    check_exposure(
        load_settings(
            values={"serving.host": "0.0.0.0", "serving.keys_file": str(tmp_path)}, environment={}
        )
    )


def test_foreign_hosts_and_origins_are_refused(start: Start) -> None:
    server: Running = start(serving__cors_origins=["https://friend.example"])
    with server.client() as client:
        own = server.url

        def post(**headers: str) -> httpx.Response:
            return client.post("/v1/search", json={"query": "key"}, headers=headers)

        assert post().status_code == 200
        assert post(Origin=own).status_code == 200
        friend = post(Origin="https://friend.example")
        assert friend.status_code == 200
        assert friend.headers["access-control-allow-origin"] == "https://friend.example"
        asking = {
            "Origin": "https://friend.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization, x-stainless-os, x-request-id",
        }
        assert client.options("/v1/chat/completions", headers=asking).status_code == 200
        for origin in (
            "https://evil.example",
            "null",
            own + ".evil.example",
            "http://127.0.0.1",
            "http://[",
        ):
            response = post(Origin=origin)
            assert response.status_code == 403, origin
            assert "access-control-allow-origin" not in response.headers
        for host in ("evil.example", "127.0.0.1.evil.example", "", "localhost@evil"):
            assert client.get("/health/live", headers={"Host": host}).status_code == 403
        for host in ("localhost:1", "127.0.0.1", "[::1]:8080", "LOCALHOST"):
            assert client.get("/health/live", headers={"Host": host}).status_code == 200


def test_a_server_that_is_filled_while_running_shows_new_documents_at_once(start: Start) -> None:
    server = start()
    store: FeatureStore = server.services.store
    fill(store, {"late.md": "The zebra stable is run by Dana Fox."})
    with server.client() as client:
        hits = client.post("/v1/search", json={"query": "zebra stable"}).json()["hits"]
    assert hits[0]["source"] == "late.md"
