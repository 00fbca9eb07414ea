"""What `--log` writes: the fit's history and the choice, to TensorBoard or MLflow (extras of these names)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..checks import check_choice, optional_library
from ..choice import Choice
from ..errors import InputError
from ..history import History
from ..polarized import PolarizedModel

EXPERIMENT = "neural-polarizer"
MLFLOW_FILE = "mlflow.db"  # where no tracking server is named
Point = tuple[str, float, int]  # name, value, step


def check_tracker(name: str) -> None:
    """Refuse an unknown tracker, or one that is not installed, before the work and not after it.

    Raises:
        InputError: with the extra to install.
    """
    check_choice("log", name, TRACKERS)
    _library(name)


def track(name: str, purified: PolarizedModel, out: Path, setting: dict[str, Any]) -> str:
    """Write the history of the fit, every trial and the judgement of a purified model.

    Args:
        name: "tensorboard", files in `out`/tensorboard; or "mlflow", a run on the server that MLFLOW_TRACKING_URI
            names, or in the file `out`/mlflow.db.
        out: a folder that exists.
        setting: what was asked for, as plain values.

    Returns:
        Where it went, in words that say how to look at it.

    Raises:
        InputError: an unknown or missing tracker, or a server that does not take the run.

    Example:
        >>> track("tensorboard", purified, Path("out"), {"seed": 0})               # doctest: +SKIP
        'out/tensorboard (tensorboard --logdir out/tensorboard)'
    """
    check_tracker(name)
    return TRACKERS[name](list(points(purified.history, purified.choice)), out, setting, purified.choice)


def points(history: History, choice: Choice | None) -> Iterator[Point]:
    """Everything that has a number: `fit/...` by epoch, `trials/...` by trial, `judged/...` once, at step 0."""
    for row in history:
        for name, value in row.items():
            if name != "epoch":
                yield f"fit/{name}", float(value), int(row["epoch"])
    if choice is None:
        return
    for i, trial in enumerate(choice.trials):
        if not trial.error:
            for name in ("strength", "accuracy_drop", "doubt", "repaired", "score"):
                yield f"trials/{name}", float(getattr(trial, name)), i
    for name, value in choice.judged().items():
        yield f"judged/{name}", float(value), 0
    yield "judged/suspicion", choice.suspicion.score, 0


def _tensorboard(found: list[Point], out: Path, setting: dict[str, Any], choice: Choice | None) -> str:
    folder = out / "tensorboard"
    writer = _library("tensorboard").SummaryWriter(str(folder))
    try:
        for name, value, step in found:
            writer.add_scalar(name, value, step)
        for name, text in _texts(setting, choice).items():
            writer.add_text(name, f"```json\n{text}\n```")
    finally:
        writer.close()
    return f"{folder} (tensorboard --logdir {folder})"


def _mlflow(found: list[Point], out: Path, setting: dict[str, Any], choice: Choice | None) -> str:
    mlflow = _library("mlflow")
    own = f"sqlite:///{(out / MLFLOW_FILE).resolve()}"
    client = mlflow.MlflowClient(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or own)
    try:
        known = client.get_experiment_by_name(EXPERIMENT)
        where = {} if client.tracking_uri != own else {"artifact_location": (out / "mlartifacts").resolve().as_uri()}
        experiment = known.experiment_id if known else client.create_experiment(EXPERIMENT, **where)
        run = client.create_run(experiment).info.run_id
        for name, asked in setting.items():
            client.log_param(run, name.replace(" ", "_"), asked)
        for name, value, step in found:
            client.log_metric(run, name, value, step=step)
        for name, text in _texts(setting, choice).items():
            client.log_text(run, text, f"{name}.json")
        client.set_terminated(run)
    except mlflow.exceptions.MlflowException as error:
        raise InputError(f"log: MLflow at {client.tracking_uri} does not take the run ({error})") from None
    return f"{client.tracking_uri} (mlflow ui --backend-store-uri {client.tracking_uri})"


def _texts(setting: dict[str, Any], choice: Choice | None) -> dict[str, str]:
    texts = {"setting": setting, "choice": None if choice is None else choice.to_dict()}
    return {name: json.dumps(value, indent=2) for name, value in texts.items() if value is not None}


def _library(name: str) -> Any:
    if name == "mlflow":
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nobody is told that a model was purified
        return optional_library("log", "mlflow", "mlflow")
    optional_library("log", "tensorboard", "tensorboard")
    return optional_library("log", "torch.utils.tensorboard", "tensorboard")


TRACKERS: dict[str, Callable[[list[Point], Path, dict[str, Any], Choice | None], str]] = {
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
}
