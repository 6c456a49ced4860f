"""Run folders as a report reads them: logs, configs and masks; runs that differ in seed alone are one group."""

import json
import os
import re
import shlex
import sys
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from operator import itemgetter

import numpy as np
import safetensors
from scipy import stats

from modelzoo.config.errors import UserError
from modelzoo.config.loading.load import load
from modelzoo.config.trainer import Config, Init
from modelzoo.folders import add_kind
from modelzoo.names import is_mask, split_masks
from modelzoo.reading import exists, open_regular
from modelzoo.records import read_record
from modelzoo.study.runs import read_log
from modelzoo.study.runs.names import show_name
from modelzoo.training.checkpoints import checkpoint
from modelzoo.training.logs.launches import read_launches
from modelzoo.training.runs.folder import RunFolder, Speed

_SEED = re.compile(r"[-_]?seed[-_]?\d+$|^seed_\d+$")


@dataclass
class Result:
    """One run, read from its folder."""

    folder: str
    config: Config
    train: list[dict]
    validation: list[dict]
    dev: list[dict]  # a fine-tuning run's scores on its dev set
    timing: list[dict]
    launches: list[dict]
    speed: Speed | None = None  # of its last launch

    @property
    def name(self) -> str:
        return show_name(os.path.basename(os.path.abspath(self.folder)))

    @property
    def init(self) -> Init:
        return self.config.trainer.init

    @property
    def dynamic(self) -> bool:
        """Whether its masks change during training."""
        return any(g.algorithm != "static" for g in self.init.sparsity)

    @cached_property
    def checkpoints(self) -> dict[int, str]:
        """Step: folder, rising."""
        root = RunFolder.of(self.init, self.folder).checkpoints
        return {step: os.path.join(root, f"step_{step}") for step in checkpoint.steps(root)}

    @property
    def last(self) -> str | None:
        return next(reversed(self.checkpoints.values()), None)

    @cached_property
    def live(self) -> dict[str, tuple[int, int]]:
        """Live weights, and all, of each masked parameter in the last checkpoint."""
        return {} if self.last is None else {n: (int(m.sum()), m.size) for n, m in masks(self.last).items()}

    @property
    def parent(self) -> str | None:
        """The checkpoint or run whose weights it started from, as far as its folder records it."""
        section = getattr(self.config.trainer, "finetune", None)
        fit = self.config.trainer.fit
        named = [getattr(section, "checkpoint", None), fit.ckpt_path if fit else None]
        for launch in self.launches[:1]:
            words = _split_words(launch.get("command", ""))
            named += [b for a, b in pairwise(words) if a == "--checkpoint_path"]
        return next((p for p in reversed(named) if p), None)

    @cached_property
    def losses(self) -> dict[int, float]:
        """Validation loss by step."""
        return {r["step"]: r["loss"] for r in reversed(self.validation)}  # the first of a step

    def at(self, step: int) -> dict:
        """The training record of `step`, with the seconds that training and validation had taken by then.

        Where the step has none (`logging.log_steps`), what grows step by step is between the records around it.
        """
        record = self._at_step.get(step) or self._between(step)
        steps, seconds = self._trained
        whole = bisect_right(steps, step)  # records of steps up to this one
        trained = seconds[whole]
        if whole < len(self.timed):
            before, later = self.timed[whole]
            trained += later["seconds"] * (step - before)
        others, spent = self._others
        return {**record, "seconds": trained + spent[bisect_right(others, step)]}

    def _between(self, step: int) -> dict:
        place = bisect_right(self.train, step, key=itemgetter("step"))
        if place == len(self.train):
            return {}
        later = self.train[place]
        sums = [k for k in ("tokens", "flops", "dense_flops") if k in later]
        before = self.train[place - 1] if place else {"step": 0, **dict.fromkeys(sums, 0)}
        part = (step - before["step"]) / (later["step"] - before["step"])
        return {"step": step, **{k: before[k] + part * (later[k] - before[k]) for k in sums if k in before}}

    @cached_property
    def _at_step(self) -> dict[int, dict]:
        return {r["step"]: r for r in reversed(self.train)}  # the first of a step

    @cached_property
    def _trained(self) -> tuple[list[int], list[float]]:
        """The step of each timing record of training, and seconds of training before each and after the last."""
        spent = accumulate((t["seconds"] * (t["step"] - before) for before, t in self.timed), initial=0.0)
        return [t["step"] for _, t in self.timed], list(spent)

    @cached_property
    def _others(self) -> tuple[list[int], list[float]]:
        """The same of validation."""
        found = [t for t in self.timing if t["kind"] != "train"]
        return [t["step"] for t in found], list(accumulate((t["seconds"] for t in found), initial=0.0))

    @cached_property
    def timed(self) -> list[tuple[int, dict]]:
        """Each timing record of training with the step of the one before (0): its means are of the steps in between."""
        found = [t for t in self.timing if t["kind"] == "train"]
        return list(zip([0, *(t["step"] for t in found)], found, strict=False))


def read_run(folder: str) -> Result:
    """The run in `folder`.

    Raises:
        UserError: it is no run.
    """
    if not os.path.isdir(folder):
        raise UserError(f"{folder}: no such run folder")
    files = RunFolder(folder)
    if not exists(files.config):
        raise UserError(add_kind(f"{folder}: is no run folder; one has config.yaml and metrics.jsonl", folder))
    config = load(files.config, Config)
    metrics, timing = read_log.read_metrics(files.metrics), read_log.read_timing(files.timing)
    launches, speed = read_launches(files), _read_speed(files)
    for log in (metrics, timing, launches):
        if log.note is not None:
            print(log.note, file=sys.stderr)
    rising, timed = (sorted(log.records, key=itemgetter("step")) for log in (metrics, timing))
    of = lambda kind: [r for r in rising if r["kind"] == kind]
    return Result(folder, config, of("train"), of("validation"), of("dev"), timed, launches.records, speed)


def _split_words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:  # a quote that does not end
        return command.split()


def tensors(path: str, wanted=lambda name: True) -> dict[str, np.ndarray]:
    """Tensors of a checkpoint's model file by name.

    Raises:
        UserError: it cannot be read.
    """
    found, path = {}, os.path.join(path, "model.safetensors")
    try:
        open_regular(path).close()  # a pipe would be waited for
        with safetensors.safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 safe_open is no mapping
                if wanted(name):
                    found[name] = file.get_tensor(name)
    except (OSError, safetensors.SafetensorError, ValueError, TypeError) as e:
        raise UserError(f"{path}: cannot be read ({' '.join(str(e).split())[:120]})") from None
    return found


def masks(path: str) -> dict[str, np.ndarray]:
    """[out, in] bool by parameter name."""
    return split_masks(tensors(path, is_mask))[1]


def _read_speed(files: RunFolder) -> Speed | None:
    """speed.json, which runs of older versions lack; a line reports one of another form."""
    if not exists(files.speed):
        return None
    try:
        return read_record(files.speed, Speed, "no such file", "is no record of a run's speed")
    except UserError as e:
        print(f"note       {e}; it is left out", file=sys.stderr)
        return None


@dataclass
class Group:
    """Runs of one config with different seeds."""

    label: str
    runs: list[Result]

    @property
    def first(self) -> Result:
        return self.runs[0]

    @property
    def validated(self) -> list[Result]:
        """Its runs that were validated at all, which losses are of."""
        return [run for run in self.runs if run.validation]

    @property
    def steps(self) -> list[int]:
        """Steps at which each of these was validated."""
        found = [{r["step"] for r in run.validation} for run in self.validated]
        return sorted(set.intersection(*found)) if found else []

    def losses(self, step: int) -> list[float]:
        """Validation loss of each of them at `step`."""
        return [run.losses[step] for run in self.validated]

    def mean(self, keys: Sequence[str], step: int) -> list[float | None]:
        """Means over them of a training record's `keys` (or `seconds`) at `step`; None for a key that one has not."""
        records = [run.at(step) for run in self.validated]
        return [float(np.mean([r[k] for r in records])) if all(k in r for r in records) else None for k in keys]


def group_runs(results: Sequence[Result], labels: Mapping[str, str] | None = None) -> list[Group]:
    """Runs in groups, in the order in which they were named.

    Args:
        labels: folder to group; without it, runs whose configs differ in seeds and paths alone are one group.
    """
    groups: dict[str, Group] = {}
    for result in results:
        key = labels[result.folder] if labels is not None else _identity(result.config)
        label = key if labels is not None else _label(result)
        groups.setdefault(key, Group(label, [])).runs.append(result)
    found = list(groups.values())
    seen = [g.label for g in found]
    for group in found:
        if seen.count(group.label) > 1:
            group.label = show_name(os.path.normpath(group.first.folder))
    return found


def _label(result: Result) -> str:
    """A run's name without its seed; where nothing else is left (`pubmedqa/fold_0/seed_1`), its folders' names."""
    above = os.path.normpath(result.folder).split(os.sep)[-3:-1]
    return _SEED.sub("", result.name) or show_name("-".join(above)) or result.name


def _identity(config: Config) -> str:
    data = config.model_dump(mode="json")
    init = data["trainer"]["init"]
    for key in ("seed", "model_dir", "backend", "device", "logging", "loggers", "checkpoint"):
        init.pop(key, None)
    finetune = data["trainer"].get("finetune")
    if finetune:
        finetune.pop("seeds", None)
        ((data["trainer"]["fit"] or {}).get("train_dataloader") or {}).pop("shuffle_seed", None)
    return json.dumps(data, sort_keys=True)


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and its 95 % interval by Student's t; the interval of a single value has no width, and says nothing."""
    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return mean, mean, mean
    half = float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
    return mean, mean - half, mean + half


def find_front(points: Sequence[tuple[float, float]], slack: float = 0.0) -> list[int]:
    """Indices of the points (cost, loss) that no other beats in both, by rising cost.

    Args:
        slack: share by which a cost may be higher and counts as no more.
    """
    best, kept = float("inf"), []
    for i in sorted(range(len(points)), key=lambda i: points[i]):
        near = min(loss for cost, loss in points if cost <= points[i][0] * (1 + slack))
        if points[i][1] < best and points[i][1] <= near:
            best = points[i][1]
            kept.append(i)
    return kept
