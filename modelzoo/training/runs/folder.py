"""The layout of a run's folder, in one place. No torch.

config.yaml              the resolved config, reloadable; config.until_N.yaml: what it was until step N
launches.jsonl           a line for each command that trained here: device, arithmetic, version, what it changed
metrics.jsonl            what was computed; timing.jsonl: how fast; tensorboard/: both
speed.json               of the last command that trained: tokens and FLOPs a second, peak memory, MFU's yardstick
checkpoints/step_N/      (or checkpoint.checkpoint_root)
best/step_N/             fine-tuning: the weights with the best dev score; result.json, predictions.json
evaluation/              scores on tasks, with predictions; eval.json: loss on the validation sets
before_1/                an earlier run, moved aside by --restart
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from modelzoo.config.errors import UserError
from modelzoo.config.loading.load import load
from modelzoo.config.trainer import Config, Init
from modelzoo.lock import lock_folder
from modelzoo.reading import exists
from modelzoo.records import Record

CONFIG, STATE = "config.yaml", "state.json"


class Speed(Record):
    """speed.json: the last command's training without its first step, peak memory, and what the devices can do."""

    step: Annotated[int, Field(ge=0)]
    tokens_per_second: Annotated[float, Field(ge=0)]
    flops_per_second: Annotated[float, Field(ge=0)]  # of live weights, as counted
    dense_flops_per_second: Annotated[float, Field(ge=0)]  # for the same steps had every weight been on
    memory_bytes: int | None = None
    peak_flops_per_second: Annotated[float, Field(gt=0)] | None = None
    peak: str | None = None  # that in words


@dataclass(frozen=True)
class RunFolder:
    """A run's folder.

    Args:
        path: the folder, which need not exist.
        checkpoint_root: where its checkpoints are, if not in checkpoints/.
    """

    path: str
    checkpoint_root: str | None = None

    @classmethod
    def of(cls, init: Init, model_dir: str) -> "RunFolder":
        """The folder of a run with config `init` in `model_dir`."""
        root = init.checkpoint.checkpoint_root
        if root is not None and not exists(root) and _contains(init.model_dir, root):
            moved = os.path.join(model_dir, os.path.relpath(root, init.model_dir))
            root = moved if exists(moved) else root
        return cls(model_dir, root)

    @classmethod
    def containing(cls, step_folder: str) -> "RunFolder":
        """The folder of the run that the step folder `<run>/checkpoints/step_N` belongs to."""
        return cls(os.path.dirname(os.path.dirname(os.path.abspath(step_folder))))

    def _file(self, name: str) -> str:
        return os.path.join(self.path, name)

    @property
    def config(self) -> str:
        return self._file(CONFIG)

    @property
    def launches(self) -> str:
        return self._file("launches.jsonl")

    @property
    def metrics(self) -> str:
        return self._file("metrics.jsonl")

    @property
    def timing(self) -> str:
        return self._file("timing.jsonl")

    @property
    def speed(self) -> str:
        return self._file("speed.json")

    @property
    def tensorboard(self) -> str:
        return self._file("tensorboard")

    @property
    def checkpoints(self) -> str:
        return self.checkpoint_root or self._file("checkpoints")

    @property
    def best(self) -> str:
        return self._file("best")

    @property
    def result(self) -> str:
        return self._file("result.json")

    @property
    def results(self) -> str:
        """Of all runs of a fine-tuning command."""
        return self._file("results.json")

    @property
    def predictions(self) -> str:
        return self._file("predictions.json")

    @property
    def validation_scores(self) -> str:
        return self._file("eval.json")

    @property
    def evaluation(self) -> str:
        return self._file("evaluation")

    @property
    def task_scores(self) -> str:
        return os.path.join(self.evaluation, "results.json")

    @property
    def begun(self) -> bool:
        """Whether a command has trained here."""
        return exists(self.launches)

    @property
    def holds_a_run(self) -> bool:
        """Whether a run, or an imported checkpoint, is here."""
        return exists(self.config) or exists(self.checkpoints) or self.begun

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder, and that of its checkpoints if it is elsewhere, against other processes.

        Raises:
            Busy: another process holds one of them.
        """
        with contextlib.ExitStack() as held:
            held.enter_context(lock_folder(self.path))
            if self.checkpoint_root is not None and not _contains(self.path, self.checkpoint_root):
                held.enter_context(lock_folder(self.checkpoint_root))
            yield

    def read_config(self) -> Config | None:
        """The config that the run was last trained with; None where there is none.

        Raises:
            UserError: it is not one that this version reads.
        """
        return load(self.config, Config) if exists(self.config) else None

    def move_aside(self) -> str:
        """Move the run that is here into before_N, so that another may begin; nothing is deleted.

        Checkpoints go first: what a kill leaves after that cannot be resumed.

        Returns:
            The folder that holds it now.

        Raises:
            UserError: something cannot be moved.
        """
        number = 1
        while exists(self._file(f"before_{number}")):
            number += 1
        aside = self._file(f"before_{number}")
        own = [self.best, self.metrics, self.timing, self.speed, self.tensorboard, self.result, self.predictions]
        own += [self.results, self.validation_scores, self.evaluation, self.launches]
        own += sorted(self._file(n) for n in os.listdir(self.path) if n == CONFIG or n.startswith("config.until_"))
        moves = [(self.checkpoints, os.path.join(aside, "checkpoints"))]
        moves += [(path, os.path.join(aside, os.path.basename(path))) for path in own]
        try:
            os.makedirs(aside)
            for source, target in moves:
                if exists(source):
                    _move(source, target)
        except OSError as e:
            raise UserError(f"{self.path}: cannot be moved aside ({e.strerror}); give another -o") from None
        return aside


def find_model_dir(params: str, asked: str | None, overrides: Sequence[str], init: Init) -> str:
    """The folder that a command works in: `asked` (-o), else where the run is whose config.yaml is given, else the
    config's. A run's folder that was moved or copied is where it is, whatever its config.yaml says; a line reports it.

    Args:
        params: the config file.
        overrides: of its keys.
    """
    named = any(o.partition("=")[0].strip() == "trainer.init.model_dir" for o in overrides)
    place = os.path.dirname(params) or os.curdir
    run = RunFolder(place)
    own = os.path.basename(params) == CONFIG and (run.begun or exists(run.checkpoints))
    if asked or named or not own or os.path.realpath(place) == os.path.realpath(init.model_dir):
        return asked or init.model_dir
    print(f"note       {params} names {init.model_dir}; the run is taken where it is, in {place}", file=sys.stderr)
    return place


def _contains(folder: str, path: str) -> bool:
    """Whether `path` is in `folder`, or is it."""
    above, below = os.path.realpath(folder), os.path.realpath(path)
    return os.path.commonpath([above, below]) == above


def _move(source: str, target: str) -> None:
    """Move a file or folder; across file systems it stays next to its old place, under another name."""
    try:
        os.rename(source, target)
    except OSError:
        os.rename(source, f"{source}.{os.path.basename(os.path.dirname(target))}")
