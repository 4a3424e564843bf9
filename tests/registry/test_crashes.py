"""Random interleavings of publish, promote, rollback, gc and crash; no invariant may break.

A crash is a real one: the operation runs in a forked child that leaves by ``os._exit`` at a
random durable step, so no ``finally`` of ours gets to tidy up.
"""

from __future__ import annotations

import os
import random
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from rag_fti.errors import ModelNotFound
from rag_fti.registry import Registry

# The forked children touch the registry alone; other tests of the run may have loaded lance or
# started threads.
pytestmark = [
    pytest.mark.filterwarnings("ignore:lance is not fork-safe:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
]

INTERLEAVINGS = 200
OPERATIONS = 8
CRASHED = 86


class Dying:
    """Leaves the process at the n-th durable step."""

    def __init__(self, countdown: int) -> None:
        self.countdown = countdown

    def __call__(self, _: str) -> None:
        self.countdown -= 1
        if self.countdown <= 0:
            os._exit(CRASHED)


def perform(registry: Registry, operation: str, files: Path, choice: random.Random) -> None:
    numbers = [version.version for version in registry.versions("m")]
    if operation == "publish":
        registry.publish("m", files, {"marker": choice.random()})
    elif operation == "promote" and numbers:
        alias = choice.choice(["champion", "challenger"])
        with suppress(ModelNotFound):  # gc died after it had written down that it goes
            registry.set_alias("m", alias, choice.choice(numbers), who="w", why="y")
    elif operation == "rollback" and numbers:
        with suppress(ModelNotFound):
            registry.rollback("m", who="w")
    elif operation == "gc" and numbers:
        registry.gc("m", keep_last=1, min_age_seconds=0, stale_seconds=3600)


def crash_in_child(root: Path, operation: str, files: Path, seed: int, step: int) -> bool:
    """Whether the child died on the way."""
    child = os.fork()
    if child == 0:
        perform(Registry(root, step=Dying(step)), operation, files, random.Random(seed))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, CRASHED)
    return code == CRASHED


class Seen:
    """What must stay true from one look to the next."""

    def __init__(self) -> None:
        self.manifests: dict[int, object] = {}
        self.history: list[object] = []
        self.highest = 0


def check(registry: Registry, seen: Seen) -> None:
    versions = {version.version: version for version in registry.versions("m")}
    for number, version in versions.items():
        registry.verify(version)
        assert version.manifest["version"] == number
        known = seen.manifests.setdefault(number, version.manifest)
        assert known == version.manifest, "a version changed"
    gone = set(seen.manifests) - set(versions)
    assert gone <= set(registry.retired("m")), "a version vanished without a tombstone"
    highest = max([*versions, *registry.retired("m")], default=0)
    assert highest >= seen.highest
    seen.highest = highest
    history = registry.history("m")
    assert history[: len(seen.history)] == seen.history, "the history was rewritten"
    seen.history = list(history)
    for alias, number in registry.aliases("m").items():
        assert number in versions, f"{alias} points at a version that is gone"
        assert registry.resolve(f"m@{alias}").version == number


@pytest.mark.parametrize("block", range(4))
def test_random_interleavings_break_nothing(tmp_path: Path, block: int) -> None:
    files = tmp_path / "files"
    files.mkdir()
    (files / "adapter_model.safetensors").write_bytes(b"w" * 2000)
    (files / "adapter_config.json").write_text("{}")
    crashes = 0
    for number in range(INTERLEAVINGS // 4):
        choice = random.Random(1000 * block + number)
        root = tmp_path / f"registry-{number}"
        registry, seen = Registry(root), Seen()
        for _ in range(OPERATIONS):
            operation = choice.choice(
                ["publish", "publish", "promote", "promote", "rollback", "gc"]
            )
            if choice.random() < 0.4:
                crashes += crash_in_child(
                    root, operation, files, choice.randrange(1 << 30), choice.randint(1, 4)
                )
            else:
                perform(registry, operation, files, choice)
            check(registry, seen)
        shutil.rmtree(root, ignore_errors=True)
    assert crashes > 30


def test_a_torn_history_line_never_counted_and_is_cut_off(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    (files / "a.json").write_text("{}")
    registry = Registry(tmp_path / "r")
    registry.publish("m", files, {})
    registry.publish("m", files, {})
    registry.set_alias("m", "champion", 1, why="w")
    path = tmp_path / "r/m/aliases/history.jsonl"
    whole = path.read_bytes()
    for length in range(1, 60, 7):
        path.write_bytes(whole + whole[:length])
        assert registry.aliases("m") == {"champion": 1}
    registry.set_alias("m", "champion", 2, why="w")
    assert path.read_bytes().startswith(whole)
    assert [c.to_version for c in registry.history("m")] == [1, 2]
