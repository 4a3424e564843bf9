from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rag_fti.files import write_bytes_atomic, write_json_atomic


def test_write_creates_parents_and_leaves_no_temporary(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b.json"
    write_json_atomic(target, {"é": 1})
    assert json.loads(target.read_text(encoding="utf-8")) == {"é": 1}
    assert [p.name for p in target.parent.iterdir()] == ["b.json"]


def test_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "x"
    write_bytes_atomic(target, b"old")
    with pytest.raises(TypeError):
        write_bytes_atomic(target, "not bytes")  # type: ignore[arg-type]
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_killed_writer_never_leaves_half_a_file(tmp_path: Path) -> None:
    target = tmp_path / "state.json"
    program = (
        "import sys; from pathlib import Path; from rag_fti.files import write_json_atomic\n"
        "n = 0\n"
        "while True:\n"
        "    n += 1; write_json_atomic(Path(sys.argv[1]), {'n': n, 'pad': 'x' * 200_000})\n"
    )
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", program, str(target)]) as writer:
            deadline = time.monotonic() + 20
            while not target.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.15)
            writer.kill()
        assert len(json.loads(target.read_text(encoding="utf-8"))["pad"]) == 200_000
