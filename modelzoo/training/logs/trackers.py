"""Weights & Biases and MLflow, by choice (`trainer.init.loggers`): offline unless the config says otherwise.

Each package is an extra, imported where a run asks for it. A resumed run continues the same tracked run. A service that
fails in the middle ends no run: the run's own logs have the same numbers. What a service gets of the config holds no
secret and nothing of the cluster.
"""

import contextlib
import hashlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any, Protocol

from modelzoo.config.errors import UserError
from modelzoo.config.sections.callbacks import MLflowLogger, WandbLogger
from modelzoo.config.trainer import Init
from modelzoo.redact import redact_text, redact_values


class Tracker(Protocol):
    """A service that gets a run's records besides its own logs."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Values by `kind/name`, of one step."""

    def close(self) -> None: ...


def open_all(init: Init, folder: str) -> list[Tracker]:
    """Open the trackers that the config asks for.

    Raises:
        UserError: a package is not installed, or does not begin; says what to do.
    """
    made = []
    for logger in init.loggers:
        if logger.name in KINDS:
            extra, kind = KINDS[logger.name]
            package = _package(logger.name, extra)
            try:
                made.append(Guarded(logger.name, kind(package, logger.value, init, folder)))
            except Exception as e:  # whatever a foreign package raises before the first step
                raise UserError(f"trainer.init.loggers: {logger.name} does not begin: {_reason(e)}") from None
    return made


def require_packages(init: Init) -> None:
    """Check that the packages of the config's trackers are installed, before anything is written.

    Raises:
        UserError: one is not; says how to install it.
    """
    for logger in init.loggers:
        if logger.name in KINDS:
            _package(logger.name, KINDS[logger.name][0])


class Guarded:
    """A tracker that ends no run: after its first failure, which is reported, nothing more is sent to it."""

    def __init__(self, name: str, tracker: Tracker):
        self._name, self._tracker = name, tracker
        self._failed = False

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._call(lambda: self._tracker.write(step, values), f"gets nothing more from step {step} on")

    def close(self) -> None:
        self._call(self._tracker.close, "may not have got the last records")

    def _call(self, action: Callable[[], None], loss: str) -> None:
        if self._failed:
            return
        try:
            action()
        except Exception as e:  # whatever a foreign package raises
            self._failed = True
            line = f"{self._name} failed ({_reason(e)}) and {loss}; metrics.jsonl has all records"
            print(f"note       {line}", file=sys.stderr, flush=True)


def _reason(error: Exception) -> str:
    """What a foreign package says, in one line without secrets."""
    lines = redact_text(str(error)).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def describe_config(init: Init) -> dict[str, Any]:
    """The config as a service gets it: without secrets, and without the backend section, which tells of a cluster."""
    return redact_values(init.model_dump(mode="json", exclude={"backend"}))


def _package(name: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(extra)
    except ImportError:
        raise UserError(
            f"trainer.init.loggers: {name} needs a package that is not installed: pip install "
            f"'mediswift-trainer[{extra}]' (or leave {name} out; metrics.jsonl has the same numbers)"
        ) from None


def _identity(folder: str) -> str:
    """The same for a run and its resumption."""
    return hashlib.sha256(os.path.abspath(folder).encode()).hexdigest()[:16]


@contextlib.contextmanager
def _hidden_arguments() -> Iterator[None]:
    """The command line without its arguments: a service records them as they are, secrets and addresses with them."""
    before = sys.argv
    sys.argv = before[:1]
    try:
        yield
    finally:
        sys.argv = before


class Wandb:
    """A Weights & Biases run in `<folder>/wandb`."""

    def __init__(self, wandb: Any, config: WandbLogger, init: Init, folder: str):
        with _hidden_arguments():
            self._run = wandb.init(
                project=config.project,
                entity=config.entity,
                name=os.path.basename(os.path.normpath(folder)),
                id=_identity(folder),
                resume="allow" if config.mode == "online" else None,  # what is offline is joined by its id when synced
                dir=folder,
                mode=config.mode,
                config=describe_config(init),
                settings={"console": "off"},  # else it sends what the run prints, the cluster's address with it
            )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """An MLflow run; without `tracking_uri` in `<folder>/mlflow.db`."""

    def __init__(self, mlflow: Any, config: MLflowLogger, init: Init, folder: str):
        uri = config.tracking_uri or "sqlite:///" + os.path.join(os.path.abspath(folder), "mlflow.db")
        self._client = mlflow.MlflowClient(tracking_uri=uri)
        found = self._client.get_experiment_by_name(config.experiment)
        experiment = found.experiment_id if found else self._client.create_experiment(config.experiment)
        tag = _identity(folder)
        before = self._client.search_runs([experiment], f"tags.mediswift = '{tag}'")
        name = os.path.basename(os.path.normpath(folder))
        made = before[0] if before else self._client.create_run(experiment, tags={"mediswift": tag}, run_name=name)
        self._id = made.info.run_id

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self._client.log_metric(self._id, key, value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._id)


KINDS = {"WandbLogger": ("wandb", Wandb), "MLflowLogger": ("mlflow", MLflow)}
