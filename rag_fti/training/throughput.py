"""How fast and how big a run is."""

from __future__ import annotations

import resource
import sys
from typing import Any

import torch

from rag_fti.training.adapter import LINEAR

_PEAK_TERAFLOPS = {
    "H200": 989.0,
    "H100": 989.0,
    "GH200": 989.0,
    "B200": 2250.0,
    "A100": 312.0,
    "A10G": 70.0,
    "L40S": 362.0,
    "L4": 121.0,
    "4090": 165.0,
    "3090": 71.0,
}
"""Dense bfloat16 peak by substring of the device name, from NVIDIA's data sheets."""


def flops_per_token(model: Any, *, length: float) -> float:
    """Floating point operations of training one token with a frozen base.

    The forward pass costs 2 per linear weight and token, the backward pass another 2 for the
    gradients of the activations; frozen weights need no gradients of their own (that is what the
    usual 6 becomes 4 for). Attention adds ``4 · 2 · layers · width · length / 2`` (causal),
    forward and backward. The input embedding is a look-up and costs nothing.

    Args:
        model: The model.
        length: Mean length of a sequence in tokens.
    """
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    weights = sum(module.weight.numel() for module in bare.modules() if isinstance(module, LINEAR))
    config = bare.config
    attention = 4.0 * int(config.num_hidden_layers) * int(config.hidden_size) * length
    return float(4.0 * weights + attention)


def peak_flops(device: str) -> float | None:
    """The device's peak in operations per second, or None where it is not known."""
    if device != "cuda":
        return None
    name = torch.cuda.get_device_name()
    for part, teraflops in _PEAK_TERAFLOPS.items():
        if part in name:
            return teraflops * 1e12
    return None


def peak_memory_bytes(device: str) -> int:
    """Most memory in use so far: of the GPU, or of this process on a CPU."""
    if device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def device_name(device: str) -> str:
    """A name for people."""
    if device == "cuda":
        return str(torch.cuda.get_device_name())
    return f"{device} ({torch.get_num_threads()} threads)"
