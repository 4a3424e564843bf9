"""Overload with ingestion, hot swaps and vanishing clients, for as long as one likes.

The server answers 504 after its own time limit, which is shorter than the clients': so a machine
that is merely slow gives 504s, and a client that hears nothing at all has met a hang. Then the log
shows what every request, task and thread of the server is doing.

``RAG_FTI_SOAK_SECONDS=1800 pytest -m slow tests/serving/test_soak.py`` runs the half hour.
"""

from __future__ import annotations

import asyncio
import faulthandler
import json
import logging
import os
import random
import socket
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from rag_fti.inference import ServedModel
from rag_fti.registry import Registry
from tests.inference.corpus import FirstSentence, fill
from tests.serving.conftest import Running, Start

SECONDS = float(os.environ.get("RAG_FTI_SOAK_SECONDS", "45"))
CLIENTS = 24
SWAPS = 20
RUNNING = 6
SERVER_SECONDS = 60
CLIENT_SECONDS = 120
"""Several server limits: each part of a request that may wait has one."""

logger = logging.getLogger(__name__)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(int(SECONDS * 2 + 120))]


class Signed(FirstSentence):
    """Says its own name, so that an answer by the wrong version shows."""

    def reply(self, request: Any) -> str:
        return f"{self.model} says: {super().reply(request)}"


def resident_bytes() -> int:
    with Path("/proc/self/statm").open() as stream:
        return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def tell_where_requests_are(server: Running, number: int, file: Path) -> None:
    """Log what the server's requests wait for, with the stacks of its tasks and threads."""
    tasks = [
        "".join(str(frame) for frame in task.get_stack()) or repr(task)
        for task in asyncio.all_tasks(server.server.servers[0].get_loop())
    ]
    lanes = {name: (lane.running, lane.waiting) for name, lane in server.services.lanes.items()}
    with file.open("a+") as stream:
        stream.write(f"client {number} heard nothing; lanes (running, waiting): {lanes}\n")
        stream.writelines(f"{item!r}\n" for item in list(server.services.exchanges))
        stream.writelines(f"{task}\n" for task in tasks)
        stream.flush()
        faulthandler.dump_traceback(stream)
        stream.seek(0)
        logger.error("%s", stream.read())


class Clients:
    """Threads that ask, and sometimes leave in the middle."""

    def __init__(self, server: Running, stacks: Path) -> None:
        self.server = server
        self.stacks = stacks
        self.stop = threading.Event()
        self.statuses: dict[int, int] = {}
        self.problems: list[str] = []
        self.left = 0
        self._lock = threading.Lock()

    def run(self, number: int) -> None:
        source = random.Random(number)
        with self.server.client() as client:
            client.timeout = httpx.Timeout(CLIENT_SECONDS)
            while not self.stop.is_set():
                body = {
                    "messages": [{"role": "user", "content": "Who keeps the cellar key?"}],
                    "stream": source.random() < 0.5,
                }
                if source.random() < 0.1:
                    self.leave(body, source)
                    continue
                try:
                    self.check(client.post("/v1/chat/completions", json=body), body)
                except httpx.TimeoutException as error:
                    self.problems.append(f"hang: {error!r}")
                    tell_where_requests_are(self.server, number, self.stacks)
                except httpx.HTTPError as error:
                    self.problems.append(repr(error))

    def leave(self, body: dict[str, Any], source: random.Random) -> None:
        data = json.dumps(body).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        ).encode()
        with socket.create_connection(self.server.address) as connection:
            connection.sendall(head + data)
            time.sleep(source.random() * 0.05)
        self.left += 1

    def check(self, response: httpx.Response, body: dict[str, Any]) -> None:
        with self._lock:
            self.statuses[response.status_code] = self.statuses.get(response.status_code, 0) + 1
        if response.status_code == 429:
            time.sleep(0.05)
            return
        if response.status_code != 200:
            self.problems.append(f"{response.status_code}: {response.text}")
            return
        if body["stream"]:
            lines = [x[6:] for x in response.text.split("\n") if x.startswith("data: ")]
            events = [json.loads(line) for line in lines[:-1]]
            if lines[-1] != "[DONE]" or any("error" in event for event in events):
                self.problems.append(response.text[-500:])
                return
            text = "".join(e["choices"][0]["delta"].get("content", "") for e in events)
            model = events[-1]["model"]
        else:
            content = response.json()
            text, model = content["choices"][0]["message"]["content"], content["model"]
        if not text.startswith(f"{model} says:"):
            self.problems.append(f"{model}: {text}")


def test_nothing_breaks_or_leaks_under_twice_the_load(start: Start, tmp_path: Path) -> None:
    registry = Registry.open(str(tmp_path / "data" / "registry"))
    files = tmp_path / "files"
    files.mkdir()
    (files / "weights.safetensors").write_bytes(b"weights")
    for _ in range(2):
        registry.publish("assistant", files, {})
    registry.set_alias("assistant", "champion", 1, who="t", why="t")
    made: list[Signed] = []

    def opener(_: Any, reference: str) -> ServedModel:
        made.append(Signed(reference, delay=0.002))
        return ServedModel(made[-1])

    server = start(
        opener=opener, serving__max_running=RUNNING, serving__max_queue=RUNNING,
        serving__reload_seconds=0.2, serving__request_timeout_seconds=SERVER_SECONDS,
    )  # fmt: skip
    clients = Clients(server, tmp_path / "stacks.txt")
    threads = [threading.Thread(target=clients.run, args=(n,)) for n in range(CLIENTS)]
    for thread in threads:
        thread.start()
    started = time.monotonic()
    memory: list[int] = []
    swaps = 0
    # On a slow machine an ingest takes longer than the time between two swaps.
    while (passed := time.monotonic() - started) < SECONDS or swaps < SWAPS:
        fill(server.services.store, {f"late/{swaps}.md": f"Lantern {swaps} hangs in room {swaps}."})
        if passed > swaps * SECONDS / SWAPS:
            swaps += 1
            registry.set_alias("assistant", "champion", 1 + swaps % 2, who="t", why="swap")
        memory.append(resident_bytes())
        time.sleep(SECONDS / 200)
    clients.stop.set()
    for thread in threads:
        thread.join()
    lane = server.services.lanes["requests"]
    deadline = time.monotonic() + 10
    while not (lane.idle and not server.services.exchanges) and time.monotonic() < deadline:
        time.sleep(0.05)
    if not lane.idle or server.services.exchanges:
        tell_where_requests_are(server, -1, tmp_path / "stacks.txt")
    assert clients.problems == []
    assert set(clients.statuses) <= {200, 429}
    assert clients.statuses[200] > 50
    assert clients.left > 5
    assert lane.idle
    assert server.services.exchanges == set()
    assert server.services.pool.failures() == {}
    assert sum(not generator.closed for generator in made) == 1
    third = len(memory) // 3
    first, last = (sorted(part)[len(part) // 2] for part in (memory[:third], memory[-third:]))
    logger.warning(  # shown with --log-cli-level=WARNING
        "%s answers, %d left, %d swaps, memory %.0f then %.0f MiB",
        clients.statuses,
        clients.left,
        swaps,
        first / 2**20,
        last / 2**20,
    )
    if SECONDS >= 300:  # caches fill in the first minutes
        assert last <= 1.05 * first
    assert server.services.log.flush()
    logged = server.services.store.rows("inference_log").num_rows
    assert logged >= clients.statuses[200]
    assert server.services.log.dropped == 0
