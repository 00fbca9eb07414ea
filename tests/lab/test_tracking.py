"""`--log`: what a fit leaves in TensorBoard and in MLflow, read back with their own readers."""

from __future__ import annotations

import json
import sys

import pytest

from neural_polarizer import FitConfig, InputError, purify
from neural_polarizer.lab import tracking

from ..nets import images, make
from ..test_cli_purify import asked, place, run  # noqa: F401

SETTING = {"model": "m.pt", "seed": 0, "clean images": 20}


def test_every_number_of_the_history_and_of_the_choice_is_a_point():
    from neural_polarizer.choice import Choice, Trial
    from neural_polarizer.history import History
    from neural_polarizer.suspicion import Suspicion

    trials = (Trial("a", "npd", 0.1, repaired=0.5, score=0.4), Trial("b", "npd", 0.2, error="diverged"))
    choice = Choice(
        trials, 0, 0, 0.01, True, 10, 1.0, 0.9, 0.1, (0.0, 0.2), 0.5, 12, Suspicion((0.0, 0.7), ((0.1, 0.8),))
    )
    found = list(tracking.points(History([{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0}]), choice))
    assert [p for p in found if p[0] == "fit/loss"] == [("fit/loss", 2.0, 1), ("fit/loss", 1.0, 2)]
    assert [p for p in found if p[0] == "trials/repaired"] == [("trials/repaired", 0.5, 0)]  # one that failed has none
    assert ("judged/accuracy_after", 0.9, 0) in found
    assert ("judged/suspicion", 0.7, 0) in found
    assert [name for name, _, _ in tracking.points(History([{"epoch": 1, "loss": 2.0}]), None)] == ["fit/loss"]


def test_tensorboard_reads_what_was_written(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from neural_polarizer.history import History

    history = History([{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0}])
    net = make("plain")
    config = FitConfig(epochs=1, warmup_epochs=0)
    done = purify(net, images(8), layer="fc", method="npd", config=config, progress=False)
    done.history = history
    where = tracking.track("tensorboard", done, tmp_path, SETTING)
    assert str(tmp_path / "tensorboard") in where
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert [(e.step, e.value) for e in read.Scalars("fit/loss")] == [(1, 2.0), (2, 1.0)]
    assert b'"seed": 0' in read.Tensors("setting/text_summary")[0].tensor_proto.string_val[0]


def test_mlflow_reads_what_was_written(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    done = purify(
        make("plain"), images(8), layer="fc", method="npd", config=FitConfig(epochs=2, warmup_epochs=0), progress=False
    )  # fmt: skip
    tracking.track("mlflow", done, tmp_path, SETTING)
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / tracking.MLFLOW_FILE}")
    (found,) = client.search_runs([client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params == {"model": "m.pt", "seed": "0", "clean_images": "20"}
    losses = [(m.step, m.value) for m in client.get_metric_history(found.info.run_id, "fit/loss")]
    assert losses == [(row["epoch"], pytest.approx(row["loss"])) for row in done.history]
    assert (tmp_path / "mlartifacts").is_dir()


def test_the_command_logs(place, monkeypatch, capsys):  # noqa: F811
    pytest.importorskip("tensorboard")
    out = place / "out"
    given = ("--out", out, "--layer", "fc", "--method", "npd", "--max-accuracy-drop", "1", "--log", "tensorboard")
    assert run(monkeypatch, "purify", *asked(place, *given, "--json")) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["layer"] == "fc"  # standard output stays JSON
    assert f"logged to {out / 'tensorboard'}" in said.err
    assert list((out / "tensorboard").iterdir())


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_tracker_that_is_missing_is_said_before_the_work(name, place, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    assert run(monkeypatch, "purify", *asked(place, "--out", place / "out", "--log", name)) == 2
    assert f'pip install "neural-polarizer[{name}]"' in capsys.readouterr().err
    assert not (place / "out").exists()


def test_an_unknown_tracker(tmp_path):
    with pytest.raises(InputError, match="log: found 'wandb', wanted one of 'tensorboard', 'mlflow'"):
        tracking.check_tracker("wandb")
