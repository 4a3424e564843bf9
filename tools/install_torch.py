"""Install PyTorch into this environment: the CPU build unless there is a CUDA GPU.

On Linux the default package index serves a CUDA build that pulls gigabytes of libraries. This
script asks pip what it *would* install; where that includes CUDA packages and there is no GPU,
it takes the CPU build from PyTorch's own index instead.

Environment: ``TORCH`` (requirement, default below), ``TORCH_INDEX`` (index URL, used as it is).
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REQUIREMENT = "torch==2.13.0"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def pip(*arguments: str) -> None:
    """Run this environment's pip; its failure is ours."""
    subprocess.run([sys.executable, "-m", "pip", *arguments], check=True)


def has_cuda_gpu() -> bool:
    """Whether the NVIDIA driver lists a GPU."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return False
    listing = subprocess.run([command, "-L"], capture_output=True, text=True, check=False)
    return listing.returncode == 0 and "GPU" in listing.stdout


def planned_packages(requirement: str) -> list[str]:
    """Names of the packages pip would install for ``requirement``."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        pip("install", "--quiet", "--dry-run", "--report", str(report), requirement)
        plan = json.loads(report.read_text(encoding="utf-8"))
    return [item["metadata"]["name"].lower() for item in plan["install"]]


def main() -> None:
    """Install PyTorch if it is missing."""
    if importlib.util.find_spec("torch") is not None:
        return
    requirement = os.environ.get("TORCH", REQUIREMENT)
    if index := os.environ.get("TORCH_INDEX"):
        pip("install", "--index-url", index, requirement)
        return
    needs_cpu_index = (
        sys.platform == "linux"
        and not has_cuda_gpu()
        and any(name.startswith(("nvidia-", "cuda-")) for name in planned_packages(requirement))
    )
    if needs_cpu_index:
        pip("install", "--index-url", CPU_INDEX, requirement)
    else:
        pip("install", requirement)


if __name__ == "__main__":
    main()
