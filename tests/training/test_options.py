"""Options of a run that most runs do not use: trackers, compilation."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines import training
from rag_fti.config import load_settings
from rag_fti.errors import TrainingError
from tests.training.test_fitting import train
from tests.training.tiny import LIBRARY_WARNINGS, build_dataset

pytestmark = LIBRARY_WARNINGS


def test_tensorboard_events_outlive_the_checkpoints(tiny_llama: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    build_dataset(tmp_path / "datasets")
    values = {
        "storage.root": str(tmp_path),
        "training.dataset": "colours@latest",
        "training.base_model": str(tiny_llama),
        "training.trackers": ["tensorboard"],
        "training.max_steps": 4,
        "training.samples": 0,
        "training.device": "cpu",
        "training.dtype": "float32",
    }
    summary = training.run(load_settings(values=values, environment={}))
    assert summary.version == 1
    (folder,) = (tmp_path / "training" / "tensorboard").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning:mlflow.*")
@pytest.mark.filterwarnings("ignore::UserWarning:mlflow.*")
def test_mlflow_gets_every_loss(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs the extra mlflow")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'runs.db'}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "tiny")
    result = train(tiny_llama, tmp_path / "work", trackers=("mlflow",))
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'runs.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    assert run.info.status == "FINISHED"
    losses = [
        (item.step, item.value) for item in client.get_metric_history(run.info.run_id, "loss")
    ]
    assert losses == result.fit.losses()

    mlflow.set_tracking_uri("nonsense://nowhere")
    with pytest.raises(TrainingError, match="tracker failed"):
        train(tiny_llama, tmp_path / "work", trackers=("mlflow",), max_steps=1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_run_has_the_losses_of_a_plain_one(tiny_llama: Path, tmp_path: Path) -> None:
    plain = train(tiny_llama, tmp_path / "a", max_steps=4)
    compiled = train(tiny_llama, tmp_path / "b", max_steps=4, compile=True)
    assert compiled.switches["compile"]
    for (_, one), (_, other) in zip(plain.fit.losses(), compiled.fit.losses(), strict=True):
        assert other == pytest.approx(one, abs=1e-3)
    assert compiled.fit.best_step == plain.fit.best_step
