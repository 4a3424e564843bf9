from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest

from rag_fti.inference import ServedModel
from rag_fti.models.remote import CircuitBreaker, RemoteGenerator
from rag_fti.registry import Registry
from tests.inference.corpus import CORPUS, FirstSentence
from tests.models.test_remote import Upstream
from tests.serving.conftest import Running, Start

QUESTION = {"messages": [{"role": "user", "content": "Who keeps the cellar key?"}]}


def test_search_has_the_promised_keys(start: Start) -> None:
    with start().client() as client:
        body = client.post("/v1/search", json={"query": "cellar key", "k": 2}).json()
        for mode in ("vector", "text", "hybrid"):
            one = client.post("/v1/search", json={"query": "ferry", "k": 1, "mode": mode}).json()
            assert one["hits"][0]["source"] == "guide/boats.md"
        filtered = {"query": "key", "filter": "source LIKE '%hours%'"}
        assert {h["source"] for h in client.post("/v1/search", json=filtered).json()["hits"]} == {
            "guide/hours.md"
        }
    assert set(body) == {"snapshot", "hits"}
    assert len(body["hits"]) == 2
    hit = body["hits"][0]
    assert set(hit) == {
        *("chunk_id", "document_id", "source", "title", "heading", "page", "start", "end"),
        *("text", "score"),
    }
    assert CORPUS[hit["source"]][hit["start"] : hit["end"]] == hit["text"]


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("source = 1 +", "'+' is not accepted"),
        ("_rowid > 0", "there are chunk_id, "),
        ("regexp_like(title, '(')", "unclosed group"),
    ],
)
def test_a_bad_filter_is_called_that(start: Start, where: str, said: str) -> None:
    with start().client() as client:
        response = client.post("/v1/search", json={"query": "key", "filter": where})
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["code"]) == ("filter", "bad_filter")
    assert said in error["message"]
    assert ".rs:" not in error["message"]


def test_embeddings_in_both_encodings(start: Start) -> None:
    with start().client() as client:
        plain = client.post("/v1/embeddings", json={"input": "a key"}).json()
        packed = client.post(
            "/v1/embeddings", json={"input": ["a key"], "encoding_format": "base64"}
        ).json()
        refused = client.post("/v1/embeddings", json={"input": "a", "model": "other"})
    vector = np.asarray(plain["data"][0]["embedding"], dtype=np.float32)
    decoded = np.frombuffer(base64.b64decode(packed["data"][0]["embedding"]), dtype="<f4")
    np.testing.assert_allclose(vector, decoded, rtol=1e-6)
    assert plain["usage"]["prompt_tokens"] == 2
    assert refused.status_code == 404


def test_a_cited_document_can_be_read_at_its_snapshot(start: Start) -> None:
    server = start()
    with server.client() as client:
        answer = client.post("/v1/chat/completions", json=QUESTION).json()
        citation = answer["citations"][0]
        path = f"/v1/documents/{citation['document_id']}"
        body = client.get(path, params={"at": answer["snapshot"]}).json()
        assert body["text"][citation["start"] : citation["end"]] == citation["text"]
        assert body["source"] == "guide/keys.md"
        assert client.get("/v1/documents/nothing").status_code == 404
        assert client.get(path, params={"at": "d99c99"}).status_code == 404


def test_the_base_model_is_found_as_base(start: Start) -> None:
    with start().client() as client:
        base = client.get("/v1/models/base").json()
        assert (base["id"], base["object"]) == ("base", "model")
        assert client.get(f"/v1/models/{base['root']}").json() == {**base, "id": base["root"]}
        assert client.get("/v1/models/nobody").status_code == 404


def test_health_version_and_metrics(start: Start) -> None:
    with start().client() as client:
        assert client.get("/health/live").json() == {"status": "ok"}
        ready = client.get("/health/ready")
        assert ready.status_code == 200
        assert ready.json()["status"] == "ready"
        assert ready.json()["model"] == "first-sentence"
        assert client.get("/version").json()["model"] == "first-sentence"
        client.post("/v1/chat/completions", json=QUESTION)
        text = client.get("/metrics").text
    for line in (
        'rag_fti_answers_total{model="first-sentence",outcome="answered"} 1.0',
        'rag_fti_requests_total{method="POST",route="/v1/chat/completions",status="200"} 1.0',
        "rag_fti_time_to_first_token_seconds_count 1.0",
        "rag_fti_num_requests_waiting 0.0",
        'rag_fti_model_info{model="first-sentence",name="default"} 1.0',
    ):
        assert line in text, line


def test_readiness_tells_of_a_dead_engine_without_asking_it(start: Start) -> None:
    upstream = Upstream()
    now = [0.0]
    breaker = CircuitBreaker(threshold=2, cooldown_seconds=10, clock=lambda: now[0])
    engine = RemoteGenerator(base_url=upstream.url, model="big", retries=0, breaker=breaker)
    try:
        with start(engine).client() as client:
            upstream.plan = [(500, "out of memory", {})] * 2
            states = []
            for _ in range(2):
                states.append(client.get("/health/ready").json()["status"])
                assert client.post("/v1/chat/completions", json=QUESTION).status_code == 503
            assert states == ["ready", "ready"]
            for now[0] in (1.0, 11.0):  # while the circuit is open, and when one call may try
                ready = client.get("/health/ready")
                assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
                assert "out of memory" in ready.json()["problems"]["model default"]
                assert upstream.url not in ready.text
            assert "rag_fti_degraded 1.0" in client.get("/metrics").text
            assert len(upstream.seen) == 2
            assert client.post("/v1/chat/completions", json=QUESTION).status_code == 200
            assert client.get("/health/ready").json()["status"] == "ready"
    finally:
        upstream.stop()


def test_every_request_has_an_id_and_safe_headers(start: Start) -> None:
    with start().client() as client:
        mine = client.get("/health/live", headers={"X-Request-Id": "abc-1"})
        assert mine.headers["x-request-id"] == "abc-1"
        other = client.get("/health/live", headers={"X-Request-Id": "a b\tc"})
        assert len(other.headers["x-request-id"]) == 32
        assert other.headers["x-content-type-options"] == "nosniff"
        assert "server" not in other.headers


def test_answers_are_logged_and_rated(start: Start) -> None:
    server = start()
    with server.client() as client:
        answer = client.post("/v1/chat/completions", json=QUESTION).json()
        rated = client.post(
            "/v1/feedback", json={"response_id": answer["id"], "rating": -1, "correction": "Bo"}
        )
        assert rated.status_code == 201
        assert client.post("/v1/feedback", json={"response_id": "x"}).status_code == 404
        bad = client.post("/v1/feedback", json={"response_id": answer["id"], "rating": 7})
        assert bad.status_code == 400
        lineage = client.get(f"/v1/lineage/{answer['id']}").json()
        assert client.get("/v1/lineage/unknown").status_code == 404
    assert lineage["kind"] == "answer"
    assert lineage["chunks"][0]["cited"] is True
    assert server.services.log.flush()
    (row,) = server.services.store.rows("inference_log").to_pylist()
    assert row["question"] == "Who keeps the cellar key?"
    assert row["answer"] == answer["choices"][0]["message"]["content"]
    assert row["cited"] == [1]
    assert len(row["chunk_ids"]) == len(row["scores"])
    (feedback,) = server.services.store.rows("feedback").to_pylist()
    assert (feedback["rating"], feedback["correction"]) == (-1, "Bo")


def test_an_empty_store_is_said_and_answers_503(start: Start) -> None:
    with start(corpus={}).client() as client:
        ready = client.get("/health/ready")
        assert ready.json()["status"] == "degraded"
        assert "store" in ready.json()["problems"]
        answer = client.post("/v1/chat/completions", json=QUESTION)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "store_unavailable"


def test_the_page_is_served_under_its_own_policy(start: Start) -> None:
    with start().client() as client:
        page = client.get("/")
        assert page.status_code == 200
        assert "<html" in page.text
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        for name, kind in (("app.js", "text/javascript"), ("style.css", "text/css")):
            asset = client.get(f"/web/{name}")
            assert asset.headers["content-type"].startswith(kind)
        for name in ("README.md", "..%2fapp.py", "%2e%2e/app.py"):
            assert client.get(f"/web/{name}").status_code == 404


def test_the_page_offers_the_configured_questions(start: Start) -> None:
    with start(serving__examples=[{"question": "Who has the key?"}]).client() as client:
        response = client.get("/web/examples.json")
    assert response.json() == [{"question": "Who has the key?", "source": ""}]
    assert "default-src 'none'" in response.headers["content-security-policy"]


@pytest.fixture
def pushing(start: Start) -> Running:
    return start(corpus={})


def test_a_pushed_document_is_answered_from_at_once_and_gone_after_delete(
    pushing: Running,
) -> None:
    text = b"# Attic\n\nThe attic lantern is lit by Cem Arslan every evening at seven.\n"
    question = {"messages": [{"role": "user", "content": "Who lights the attic lantern?"}]}
    with pushing.client() as client:
        pushed = client.post("/v1/documents", files={"file": ("../house/attic.md", text)})
        assert pushed.status_code == 200, pushed.text
        body = pushed.json()
        assert body["documents"]["added"] == 1
        assert body["contract"]["ok"]
        again = client.post("/v1/documents", files={"file": ("house/attic.md", text)}).json()
        assert again["documents"]["unchanged"] == 1
        answer = client.post("/v1/chat/completions", json=question).json()
        assert "Cem Arslan" in answer["choices"][0]["message"]["content"]
        (citation,) = answer["citations"]
        assert citation["source"] == "house/attic.md"
        gone = client.delete(f"/v1/documents/{citation['document_id']}")
        assert gone.status_code == 200, gone.text
        assert gone.json()["tainted"]["answers"] == [answer["id"]]
        assert client.get(f"/v1/documents/{citation['document_id']}").status_code == 404
        after = client.post("/v1/chat/completions", json=question).json()
        assert after["abstained"] is True
        assert client.post("/v1/search", json={"query": "lantern"}).json()["hits"] == []


@pytest.mark.parametrize(
    ("kwargs", "status"),
    [
        ({"json": {"source": "a.txt", "text": "Hello there."}}, 200),
        ({"json": {"source": "a.txt"}}, 400),
        ({"json": {"source": "..", "text": "x"}}, 400),
        ({"json": {"source": "a.txt", "text": " \n "}}, 422),
        ({"json": {"source": "a.txt", "text": "x", "collection": "no/slash"}}, 400),
        ({"content": b"plain", "headers": {"content-type": "text/plain"}}, 415),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400),
        ({"data": {"collection": "x"}, "files": {}}, 415),
        ({"files": {"file": ("broken.pdf", b"%PDF-1.4 nothing")}}, 422),
        (
            {"content": b"--x\r\n", "headers": {"content-type": "multipart/form-data; boundary=x"}},
            400,
        ),
        ({"content": b"", "headers": {"content-type": "multipart/form-data"}}, 400),
    ],
)
def test_pushes_of_every_kind(pushing: Running, kwargs: dict, status: int) -> None:  # type: ignore[type-arg]
    with pushing.client() as client:
        response = client.post("/v1/documents", **kwargs)
    assert response.status_code == status, response.text


@pytest.mark.parametrize(
    ("source", "stored", "media_type"),
    [
        ("https://example.com//page?x=1", "https://example.com//page?x=1", "text/plain"),
        ("report.pdf", "report.pdf", "text/plain"),
        ("wiki/start.md", "wiki/start.md", "text/markdown"),
        ("/etc/../minutes", "etc/minutes.txt", "text/plain"),
    ],
)
def test_a_pushed_text_is_text_under_any_source(
    pushing: Running, source: str, stored: str, media_type: str
) -> None:
    with pushing.client() as client:
        pushed = client.post("/v1/documents", json={"source": source, "text": "Tea is at four."})
    assert pushed.status_code == 200, pushed.text
    (row,) = pushing.services.store.documents().to_pylist()
    assert (row["source"], row["media_type"], row["text"]) == (
        stored,
        media_type,
        "Tea is at four.",
    )


def test_the_log_survives_a_graceful_stop(start: Start) -> None:
    server = start()
    with server.client() as client:
        for _ in range(5):
            client.post("/v1/chat/completions", json=QUESTION)
    server.stop()
    assert server.services.store.rows("inference_log").num_rows == 5
    assert server.services.log.pending == 0


def test_lineage_tells_no_paths_of_the_machine(start: Start, tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    (files / "weights.safetensors").write_bytes(b"weights")
    registry = Registry.open(str(tmp_path / "data/registry"))
    version = registry.publish("assistant", files, {"dataset": "qa@1"})
    registry.set_alias("assistant", "champion", version.version, who="test", why="test")
    server = start(opener=lambda _, reference: ServedModel(FirstSentence(reference)))
    with server.client() as client:
        answer = client.post("/v1/chat/completions", json=QUESTION).json()
        found = client.get(f"/v1/lineage/{answer['id']}")
    assert found.json()["model"]["id"] == "assistant@1"
    assert found.json()["model"]["dataset"] == "qa@1"
    assert str(tmp_path) not in found.text
