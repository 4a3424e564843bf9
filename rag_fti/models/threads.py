"""How many processor threads a calculation may use.

A request embeds one short question: shared out over all cores, the threads wait for one another
longer than they compute, and for the model's threads besides. So request threads compute alone, and
the thread that owns the model uses the machine.
"""

from __future__ import annotations

from functools import lru_cache

import torch


@lru_cache(maxsize=1)
def machine_threads() -> int:
    """The number torch chose (or was told) when this was first asked."""
    return int(torch.get_num_threads())


def compute_alone() -> None:
    """Make the calling thread compute without helpers; the initializer of request threads."""
    machine_threads()
    torch.set_num_threads(1)


def compute_with(threads: int) -> None:
    """Let the calling thread use ``threads`` threads; 0 means :func:`machine_threads`."""
    torch.set_num_threads(threads or machine_threads())
