"""Compiled backends and worker processes beside torch, on a tiny random model."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from rag_fti.config.models import EmbedderConfig
from rag_fti.errors import InferenceError
from rag_fti.models.embedder import SentenceEmbedder, build_embedder
from rag_fti.protocols import EmbedderFingerprint, Vectors

WORDS = ["the", "a", "cat", "dog", "sits", "on", "mat", "tree", "market", "fell", "rose", "bond"]
TEXTS = [" ".join(WORDS[n % 5 : n % 5 + 3 + n % 9]) + "." for n in range(40)] + ["", "cat " * 90]


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence-transformers model with random weights: two layers, 32 dimensions."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import (
        Normalize,
        Pooling,
        Transformer,
    )
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    torch.manual_seed(3)
    sizes = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    BertModel(sizes).save_pretrained(folder / "bert")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder / "bert")
    transformer = Transformer(str(folder / "bert"), max_seq_length=64)
    modules = [transformer, Pooling(32, "mean"), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder / "model"))
    return folder / "model"


@pytest.fixture(scope="module")
def exact(tiny_model: Path) -> Vectors:
    config = EmbedderConfig(model=str(tiny_model), dtype="float32")
    return build_embedder(config).encode_documents(TEXTS)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    return cache


def require(backend: str) -> None:
    for name in ("onnx", "onnxruntime", *(["openvino", "nncf"] if backend == "openvino" else [])):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed (extra: compiled)")


@pytest.mark.parametrize(
    ("backend", "dtype", "least"),
    [
        ("onnx", "auto", 0.9999),
        ("onnx", "int8", 0.98),
        ("openvino", "float32", 0.9999),
        ("openvino", "bfloat16", 0.999),
        ("openvino", "int8", 0.98),
    ],
)
def test_a_compiled_backend_gives_the_vectors_of_torch(
    tiny_model: Path, exact: Vectors, backend: str, dtype: str, least: float
) -> None:
    require(backend)
    config = EmbedderConfig.model_validate(
        {"model": str(tiny_model), "backend": backend, "dtype": dtype, "batch_size": 7}
    )
    embedder = build_embedder(config)
    documents = embedder.encode_documents(TEXTS)
    assert documents.shape == exact.shape
    cosines = (documents * exact).sum(axis=1)
    # int8 errors of one random vector vary; what counts is that nearly all stay close.
    assert (cosines.mean() if dtype == "int8" else cosines.min()) > least
    np.testing.assert_allclose(embedder.encode_queries(TEXTS), documents, atol=2e-2)


def test_an_export_is_made_once_and_leaves_nothing_else(tiny_model: Path, own_cache: Path) -> None:
    require("onnx")
    config = EmbedderConfig(model=str(tiny_model), backend="onnx")
    build_embedder(config).encode_documents(["the cat"])
    folder = own_cache / "rag-fti" / "embedders"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    build_embedder(config).encode_documents(["the cat"])
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_int8_is_another_embedder_and_float_backends_are_not(tiny_model: Path) -> None:
    def of(**changes: str) -> dict[str, object]:
        config = EmbedderConfig.model_validate({"model": str(tiny_model), **changes})
        return build_embedder(config).fingerprint.to_dict()

    assert of() == of(backend="onnx") == of(backend="openvino", dtype="bfloat16")
    assert "precision" not in of()
    assert of(backend="onnx", dtype="int8")["precision"] == "int8 by onnx"
    assert of(backend="openvino", dtype="int8")["precision"] == "int8 by openvino"


@pytest.mark.parametrize(
    "wrong",
    [
        {"dtype": "int8"},
        {"backend": "onnx", "dtype": "bfloat16"},
        {"backend": "openvino", "device": "cuda"},
    ],
)
def test_what_a_backend_cannot_do_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="backend"):
        EmbedderConfig.model_validate(wrong)


def test_a_missing_package_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from rag_fti.models.compiled import require_runtime; "
        "require_runtime('onnx', int8=False)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "rag-fti[compiled]" in done.stderr


def test_openvino_reports_nothing_to_its_makers() -> None:
    require("openvino")
    code = (
        "import os; os.register_at_fork(before=lambda: os._exit(9))\n"
        "from rag_fti.models.compiled import _import_openvino; _import_openvino().Core()\n"
        "import sys, nncf; assert 'openvino_telemetry.backend' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


class _Mortal:
    """Counts characters; dies of one word."""

    def encode(self, texts: Sequence[str], *, stored: bool) -> Vectors:
        if "die" in texts:
            os._exit(1)
        return np.array([[len(text)] for text in texts], dtype=np.float32)


def test_after_a_worker_died_others_take_its_place(tmp_path: Path) -> None:
    fingerprint = EmbedderFingerprint("mortal", "m" * 64, 1, 9, False, "", "")
    embedder = SentenceEmbedder(
        directory=tmp_path, fingerprint=fingerprint, load=_Mortal, processes=2
    )
    try:
        with pytest.raises(InferenceError, match="died"):
            embedder.encode_documents(["die"] * 20)
        assert embedder.encode_documents(["four"] * 20).tolist() == [[4.0]] * 20
    finally:
        embedder.close()


@pytest.mark.slow
def test_processes_give_the_same_vectors_and_end(tiny_model: Path, exact: Vectors) -> None:
    config = EmbedderConfig(model=str(tiny_model), dtype="float32", processes=2)
    embedder = build_embedder(config)
    np.testing.assert_allclose(embedder.encode_documents(TEXTS), exact, atol=1e-5)
    workers = children(os.getpid())
    assert len(workers) >= 2
    embedder.close()  # type: ignore[attr-defined]
    assert not [worker for worker in workers if alive(worker)]


@pytest.mark.slow
def test_workers_end_with_a_killed_parent(tiny_model: Path) -> None:
    code = (
        "import sys, time\n"
        "from rag_fti.config.models import EmbedderConfig\n"
        "from rag_fti.models.embedder import build_embedder\n"
        "if __name__ == '__main__':\n"
        f"    config = EmbedderConfig(model={str(tiny_model)!r}, processes=2)\n"
        "    build_embedder(config).encode_documents(['the cat'] * 40)\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(300)\n"
    )
    script = tiny_model.parent / "embeds.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        workers = children(parent.pid)
        parent.send_signal(signal.SIGKILL)
    assert len(workers) >= 2
    deadline = time.monotonic() + 20
    while [worker for worker in workers if alive(worker)]:
        assert time.monotonic() < deadline, "workers outlived their parent"
        time.sleep(0.05)


def children(parent: int) -> list[int]:
    """Its worker processes, multiprocessing's own resource tracker left out."""
    listing = Path(f"/proc/{parent}/task/{parent}/children").read_text()
    return [
        int(word)
        for word in listing.split()
        if b"spawn_main" in Path(f"/proc/{word}/cmdline").read_bytes()
    ]


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
