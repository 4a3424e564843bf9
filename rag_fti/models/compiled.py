"""Embedding models compiled for ONNX Runtime or OpenVINO.

The whole sentence-transformers model, pooling included, is exported from torch once, checked
against it, and kept in the user's cache under the digest of its weights; after that a run needs
neither torch nor transformers. ``int8`` forms are quantised from that export.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import shutil
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rag_fti.errors import ConfigError
from rag_fti.models.lengths import CPU_BATCH_SIZE, encode_by_length
from rag_fti.protocols import Vectors

_EXPORT_VERSION = 1
"""Raise it when the export changes, so that cached ones are made anew."""

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_PROBES = ("one", "a text of some more words, with punctuation: 1, 2, 3", "the same " * 40)
_LEAST_SIMILARITY = 0.9999
_STEP = 8
"""Batches are padded to a multiple of so many tokens, so that few shapes occur."""
_PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}

Run = Callable[[Mapping[str, npt.NDArray[np.int64]]], Vectors]


class CompiledModel:
    """A sentence model in a compiled runtime, on the CPU.

    Args:
        directory: The sentence-transformers model.
        weights_digest: Of its weights; names the export in the cache.
        runtime: ``onnx`` (ONNX Runtime) or ``openvino``.
        dtype: ``auto``, ``float32``, ``int8``; with OpenVINO also ``bfloat16`` and ``float16``.
        batch_size: Texts per forward pass; 0 is what suits a CPU.
        max_tokens: What is longer is cut.

    Raises:
        ConfigError: If the runtime is not installed, or cannot run the model this way.
    """

    def __init__(
        self,
        *,
        directory: Path,
        weights_digest: str,
        runtime: str,
        dtype: str = "auto",
        batch_size: int = 0,
        max_tokens: int,
    ) -> None:
        require_runtime(runtime, int8=dtype == "int8")
        folder = exported(directory, weights_digest=weights_digest, max_tokens=max_tokens)
        about = json.loads((folder / "export.json").read_text(encoding="utf-8"))
        file = quantized(folder, runtime=runtime) if dtype == "int8" else folder / "model.onnx"
        self._run = _onnx(file) if runtime == "onnx" else _openvino(file, dtype)
        self._about = about
        self._batch_size = batch_size or CPU_BATCH_SIZE
        self._tokenizer = _tokenizer(folder, about["max_tokens"])

    def encode(self, texts: Sequence[str], *, stored: bool) -> Vectors:
        """Vectors of texts, float32 of shape ``(len(texts), dimension)``.

        Args:
            texts: At least one.
            stored: Questions and stored texts are computed alike here.
        """
        encodings = self._tokenizer.encode_batch_fast(list(texts))

        def encode(numbers: Sequence[int]) -> Vectors:
            batch = [encodings[number] for number in numbers]
            longest = max(len(encoding.ids) for encoding in batch)
            # OpenVINO keeps about 7 MB for every shape it has met.
            length = min(self._about["max_tokens"], -(-longest // _STEP) * _STEP)
            return self._run(_features(batch, self._about, length=length))

        return encode_by_length([len(e.ids) for e in encodings], self._batch_size, encode)


def require_runtime(runtime: str, *, int8: bool) -> None:
    """Check that a runtime and what exports to it are installed.

    Raises:
        ConfigError: If something is missing, with the command that installs it.
    """
    wanted = ["onnx", "onnxruntime"]
    if runtime == "openvino":
        wanted += ["openvino", "nncf"] if int8 else ["openvino"]
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"embedder.backend is {runtime}, but not installed: {', '.join(missing)}.",
            next_step='Run: pip install "rag-fti[compiled]", or set embedder.backend=torch.',
        )


def cache_folder() -> Path:
    """Where exports are kept: ``$XDG_CACHE_HOME/rag-fti/embedders``, by default ``~/.cache``."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "rag-fti" / "embedders"


def exported(directory: Path, *, weights_digest: str, max_tokens: int) -> Path:
    """The folder with ``model.onnx``, ``tokenizer.json`` and ``export.json``, made if need be.

    Args:
        directory: The sentence-transformers model.
        weights_digest: Of its weights.
        max_tokens: What is longer is cut.

    Raises:
        ConfigError: If the model cannot be exported, or the export computes something else.
    """
    folder = cache_folder() / f"{weights_digest[:32]}-{max_tokens}-v{_EXPORT_VERSION}"
    if not (folder / "export.json").is_file():
        _publish(folder, lambda path: _export(directory, path, max_tokens=max_tokens))
    return folder


def quantized(folder: Path, *, runtime: str) -> Path:
    """The int8 form of an export, made if need be.

    ONNX Runtime scales activations while running; OpenVINO with scales found on the passages of
    ``calibration.txt``, always the same, so that equal weights give equal vectors everywhere.
    """
    target = folder.with_name(f"{folder.name}-int8-{runtime}")
    file = target / ("model.onnx" if runtime == "onnx" else "model.xml")
    quantize = _quantize_onnx if runtime == "onnx" else _quantize_openvino
    if not file.is_file():
        _publish(target, lambda path: quantize(folder, path / file.name))
    return file


def _quantize_onnx(folder: Path, target: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(folder / "model.onnx", target, weight_type=QuantType.QInt8, per_channel=True)


def _quantize_openvino(folder: Path, target: Path) -> None:
    openvino = _import_openvino()
    import nncf

    nncf.set_log_level(logging.ERROR)
    about = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    tokenizer = _tokenizer(folder, about["max_tokens"])
    passages = Path(__file__).with_name("calibration.txt").read_text(encoding="utf-8")
    texts = nncf.Dataset(
        [
            _features([encoding], about, length=len(encoding.ids))
            for encoding in map(tokenizer.encode, passages.split("\n\n"))
        ]
    )
    with contextlib.redirect_stdout(sys.stderr):  # its progress bars are not a result
        model = nncf.quantize(
            openvino.Core().read_model(str(folder / "model.onnx")),
            texts,
            model_type=nncf.ModelType.TRANSFORMER,
        )
    openvino.save_model(model, str(target), compress_to_fp16=False)


def _publish(folder: Path, make: Callable[[Path], None]) -> None:
    """Fill a temporary folder and rename it; who comes second uses what the first made."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".making-"))
    try:
        make(made)
        for file in made.iterdir():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        try:
            made.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _export(directory: Path, folder: Path, *, max_tokens: int) -> None:
    import torch
    from sentence_transformers import SentenceTransformer

    try:
        model = SentenceTransformer(str(directory), device="cpu", local_files_only=True).eval()
        model.max_seq_length = max_tokens
        features = _probe(model, _PROBES[:2])
        inputs = [name for name in _INPUTS if name in features]
        sequences: dict[str, dict[int, str]] = {name: {0: "batch", 1: "length"} for name in inputs}
        with warnings.catch_warnings():
            # The tracer names the places where it fixes a value; what it made is compared below.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _positional(model, inputs),
                tuple(features[name] for name in inputs),
                str(folder / "model.onnx"),
                input_names=inputs,
                output_names=["vectors"],
                dynamic_axes={**sequences, "vectors": {0: "batch"}},
                opset_version=18,
                dynamo=False,
            )
        model.tokenizer.save_pretrained(str(folder))
    except (OSError, ValueError, KeyError, RuntimeError, torch.onnx.OnnxExporterError) as error:
        raise ConfigError(
            f"The embedding model in {directory} cannot be exported: {error}",
            next_step="Set embedder.backend=torch.",
        ) from error
    tokenizer = model.tokenizer
    about = {
        "inputs": inputs,
        "max_tokens": max_tokens,
        "pad_id": tokenizer.pad_token_id,
        "pad_token": tokenizer.pad_token,
        "padding_side": tokenizer.padding_side,
    }
    (folder / "export.json").write_text(json.dumps(about), encoding="utf-8")
    _compare(model, inputs, _onnx(folder / "model.onnx"))


def _probe(model: Any, texts: Sequence[str]) -> Mapping[str, Any]:
    features: Mapping[str, Any] = model.tokenizer(
        list(texts),
        padding=True,
        truncation=True,
        max_length=model.max_seq_length,
        return_tensors="pt",
    )
    return features


def _tokenizer(folder: Path, max_tokens: int) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(max_tokens)
    tokenizer.no_padding()
    return tokenizer


def _features(
    encodings: Sequence[Any], about: Mapping[str, Any], *, length: int
) -> dict[str, npt.NDArray[np.int64]]:
    """Model inputs, each of shape ``(len(encodings), length)``."""
    for encoding in encodings:
        encoding.pad(
            length,
            pad_id=about["pad_id"],
            pad_token=about["pad_token"],
            direction=about["padding_side"],
        )
    values = {
        "input_ids": [encoding.ids for encoding in encodings],
        "attention_mask": [encoding.attention_mask for encoding in encodings],
        "token_type_ids": [encoding.type_ids for encoding in encodings],
    }
    return {name: np.asarray(values[name], dtype=np.int64) for name in about["inputs"]}


def _positional(model: Any, inputs: Sequence[str]) -> Any:
    """The model as a module from input tensors, in their order, to sentence vectors."""
    import torch

    class Positional(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            features = dict(zip(inputs, tensors, strict=True))
            vectors: torch.Tensor = self.model(features)["sentence_embedding"]
            return vectors

    return Positional().eval()


def _compare(model: Any, inputs: Sequence[str], run: Run) -> None:
    """Refuse an export that does not compute what torch does, on other shapes than it saw."""
    import torch

    features = _probe(model, _PROBES)
    found = run({name: features[name].numpy() for name in inputs})
    with torch.inference_mode():
        expected = model(dict(features))["sentence_embedding"].numpy()
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    similarity = float(((found * expected).sum(axis=1) / np.maximum(lengths, 1e-12)).min())
    if not similarity >= _LEAST_SIMILARITY:
        raise ConfigError(
            f"The exported embedding model computes other vectors than torch: cosine "
            f"{similarity:.4f}, expected {_LEAST_SIMILARITY} or more.",
            next_step="Set embedder.backend=torch.",
        )


def _onnx(file: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _threads()
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def run(features: Mapping[str, npt.NDArray[np.int64]]) -> Vectors:
        vectors: Vectors = session.run(None, dict(features))[0]
        return vectors

    return run


def _import_openvino() -> Any:
    """OpenVINO without its telemetry.

    Importing OpenVINO or NNCF would otherwise fork this process to report it to their makers. They
    do without where the reporting package is missing, so its import is made to fail.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def _openvino(file: Path, dtype: str) -> Run:
    openvino = _import_openvino()
    options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": _threads()}
    if dtype in _PRECISIONS:
        options["INFERENCE_PRECISION_HINT"] = _PRECISIONS[dtype]
    request = openvino.Core().compile_model(str(file), "CPU", options).create_infer_request()
    lock = threading.Lock()  # a request computes one batch at a time

    def run(features: Mapping[str, npt.NDArray[np.int64]]) -> Vectors:
        with lock:
            vectors: Vectors = np.array(request.infer(dict(features))[0])
        return vectors

    return run


def _threads() -> int:
    """``OMP_NUM_THREADS``, as for torch, or every core."""
    return int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
