"""What this machine computes on, and in which arithmetic."""

from __future__ import annotations

import torch

from rag_fti.errors import ConfigError
from rag_fti.models.lengths import CPU_BATCH_SIZE


def pick_device(name: str = "auto") -> str:
    """The torch device for a configured name.

    Args:
        name: ``auto``, ``cpu``, ``cuda`` or ``mps``; ``auto`` prefers CUDA, then MPS.

    Raises:
        ConfigError: If the named device is not there.
    """
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if name == "auto":
        return next(device for device in ("cuda", "mps", "cpu") if available[device])
    if not available.get(name, False):
        present = ", ".join(device for device, there in available.items() if there)
        raise ConfigError(
            f"Device {name!r} is not available; this machine has: {present}.",
            next_step="Set device to auto, or install a torch build for it.",
        )
    return name


def pick_batch_size(device: str) -> int:
    """Texts an embedder computes at once.

    Args:
        device: A torch device name.
    """
    return CPU_BATCH_SIZE if device == "cpu" else 128


def pick_dtype(name: str, device: str) -> torch.dtype:
    """The torch dtype for a configured name.

    Args:
        name: ``auto``, ``float32``, ``bfloat16`` or ``float16``; ``auto`` is bfloat16 where the
            device multiplies it natively (AVX512-BF16 or AMX on a CPU), else float32.
        device: A torch device name.
    """
    if name == "auto":
        return torch.bfloat16 if has_native_bfloat16(device) else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def has_native_bfloat16(device: str) -> bool:
    """Whether the device has bfloat16 multiply instructions."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device == "cpu":
        capabilities = torch.backends.cpu.get_cpu_capability()
        return capabilities.startswith("AVX512") and bool(
            torch.ops.mkldnn._is_mkldnn_bf16_supported()
        )
    return False
