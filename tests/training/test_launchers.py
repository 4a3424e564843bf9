"""What the documents say about several processes and SLURM, with gloo on two CPU processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rag_fti.models.causal import resolve_base_model
from rag_fti.training.bundles import write_bundle
from tests.conftest import REPOSITORY
from tests.training.tiny import build_dataset

SCRIPTS = {
    "the bundle's": Path("bundle.slurm"),
    "several nodes": REPOSITORY / "deploy/slurm/train.slurm",
}


@pytest.fixture
def bundle(tiny_llama: Path, tmp_path: Path) -> Path:
    """A training bundle of a tiny model, for a CPU."""
    dataset = build_dataset(tmp_path / "datasets", train=32, held=4)
    written = write_bundle(
        tmp_path / "bundle",
        dataset,
        base_location=tiny_llama,
        base_model=resolve_base_model(str(tiny_llama)).to_dict(),
        training={
            "model_name": "assistant",
            "batch_size": 4,
            "epochs": 1,
            "min_steps": 1,
            "samples": 0,
            "device": "cpu",
        },
        retrieval={"k": 2},
        answer_tokens=128,
    )
    return written.path


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """The environment of a job on a one-node cluster, whose srun runs its command right here."""
    commands = tmp_path / "bin"
    commands.mkdir()
    log = tmp_path / "scontrol.log"
    for name, text in {
        "srun": 'if [ -n "${SLEEPY:-}" ]; then touch "$SLEEPY"; exec sleep 60; fi\nexec "$@"',
        "scontrol": f'if [ "$1" = show ]; then echo localhost; else echo "$@" >> {log}; fi',
    }.items():
        (commands / name).write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
        (commands / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{commands}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_NNODES": "1",
        "SLURM_GPUS_ON_NODE": "2",
    }


def require_one_version(bundle: Path) -> None:
    """Both processes trained, and one of them published."""
    (version,) = (bundle / "output/registry/assistant/versions").iterdir()
    losses = json.loads((version / "losses.json").read_text())
    # 32 examples, 4 per step and process.
    assert max(entry["step"] for entry in losses) in (4, 5)


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_slurm_job_trains_on_all_its_devices(
    bundle: Path, cluster: dict[str, str], script: str
) -> None:
    done = subprocess.run(
        ["bash", str(SCRIPTS[script])],
        cwd=bundle,
        env=cluster,
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    require_one_version(bundle)


@pytest.mark.slow
def test_accelerate_launch_trains_with_two_processes(bundle: Path, cluster: dict[str, str]) -> None:
    # accelerate sets multi_gpu by itself where it sees several GPUs; its own several processes on
    # a CPU (--cpu) need MPI.
    done = subprocess.run(
        ["accelerate", "launch", "--multi_gpu", "--num_processes", "2", "-m", "pipelines.training",
         "--config", "bundle.yaml"],
        cwd=bundle,
        env=cluster,
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    require_one_version(bundle)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_slurm_job_at_its_time_limit_is_queued_again(
    bundle: Path, cluster: dict[str, str], tmp_path: Path, script: str
) -> None:
    process = subprocess.Popen(
        ["bash", str(SCRIPTS[script])],
        cwd=bundle,
        env={**cluster, "SLEEPY": str(tmp_path / "started")},
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 30
        while not (tmp_path / "started").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=20)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    assert (tmp_path / "scontrol.log").read_text() == "requeue 7\n"
