"""The runs of a study, from its file: which there are, how long each is, and each one's whole config. No torch."""

import json
import os
from typing import NamedTuple

from modelzoo.config.errors import UserError
from modelzoo.config.loading import load as loader
from modelzoo.config.study import LearningRate, Study, StudyFile, rate_keys
from modelzoo.config.trainer import Config
from modelzoo.data import manifest
from modelzoo.planning import plan
from modelzoo.study.matrix import budget


class Cell(NamedTuple):
    """One run: a setting (axis: value), a peak learning rate (None: the base's own schedule) and a seed."""

    setting: dict[str, str]
    label: str  # of the setting
    peak: float | None
    seed: int
    name: str  # of its folder
    config: Config
    steps: int
    flops: int  # training FLOPs as run
    dense: int  # and dense-equivalent, which is what a device without sparse kernels computes


class Matrix(NamedTuple):
    """A study's runs by setting: in each, the seeds of one peak after the other."""

    study: Study
    settings: list[list[Cell]]

    @property
    def cells(self) -> list[Cell]:
        return [cell for setting in self.settings for cell in setting]


def read_matrix(path: str, overrides: list[str], output: str | None) -> Matrix:
    """The matrix of the study file at `path`.

    Args:
        overrides: `study.key=value`.
        output: instead of the file's.

    Raises:
        UserError: what is wrong in the study file, or in the config of a run, which it names.
    """
    path = loader.find_config(path)
    # a run's key is meant for all runs
    overrides = [f"study.common.{o}" if o.startswith("trainer.") else o for o in overrides]
    study = loader.load(path, StudyFile, overrides).study
    if output is not None:
        study = study.model_copy(update={"output": output})
    base = loader.find_config(study.base, os.path.dirname(path))
    settings = study.settings()
    shown = [a for a in study.axes if len({s[a] for s in settings}) > 1] or list(study.axes)[:1]
    made = []
    for setting in settings:
        label = "-".join(setting[a] for a in shown)
        try:
            made.append(_setting(study, base, setting, label))
        except UserError as e:
            lines = [f"{path}: in {label}: {line.removeprefix('--set ')}" for line in str(e).split("\n")]
            raise UserError("\n".join(lines)) from None
    return Matrix(study, made)


def _setting(study: Study, base: str, setting: dict[str, str], label: str) -> list[Cell]:
    own_sections = study.of(setting)
    length, rate = own_sections.budget, own_sections.learning_rate
    keys = {k: v for k, v in study.keys(setting).items() if k.startswith("trainer.")}

    def config(steps: int, peak: float | None = None, seed: int = study.seeds[0], folder: str = "x") -> Config:
        own = {}
        if study.data is not None:
            for split in ("train", "val"):
                own[f"trainer.fit.{split}_dataloader.data_dir"] = os.path.join(study.data, split)
        own |= keys
        own |= {"trainer.init.loop.num_steps": None, "trainer.init.loop.num_epochs": None}
        own |= {"trainer.init.loop.max_steps": steps, "trainer.init.seed": seed, "trainer.init.model_dir": folder}
        if rate is not None:
            own |= rate_keys(rate, peak or rate.peak[0], steps)
        doc = loader.resolve(base, Config, [f"{k}={json.dumps(v)}" for k, v in own.items()])
        return loader.validate(doc, Config)

    adjusts = "trainer.init.model.lr_adjustment_groups"
    if rate is not None and rate.others is not None and (key := next((k for k in keys if k.startswith(adjusts)), None)):
        raise UserError(f"{key}: learning_rate.others sets it; leave one of them out")
    probe = config(100)
    if probe.trainer.fit is None or not probe.trainer.fit.val_dataloader:
        raise UserError(f"{base}: a study needs trainer.fit with a train_dataloader and a val_dataloader")
    if length.steps is not None:
        steps = length.steps
    elif length.tokens is not None:
        per_step = probe.trainer.fit.train_dataloader.batch_size * manifest.find_context(probe)
        steps = max(1, round(length.tokens / per_step))
    elif length.flops is not None:
        steps = budget.find_steps(length.flops, config)
    else:
        raise UserError(f"{base}: study.budget: missing; give steps, tokens or flops")
    plan.check_sparsity(config(steps).trainer.init, steps)
    flops, dense = budget.count_flops(config(steps), steps)
    peaks = rate.peak if isinstance(rate, LearningRate) else (None,)
    cells = []
    for peak in peaks:
        for seed in study.seeds:
            name = label + (f"-lr{peak:g}" if len(peaks) > 1 else "") + f"-seed{seed}"
            made = config(steps, peak, seed, os.path.join(study.output, "runs", name))
            cells.append(Cell(setting, label, peak, seed, name, made, steps, flops, dense))
    return cells


def describe_matrix(matrix: Matrix, report_time) -> str:
    """The matrix as a table, a setting a line, with what it will cost.

    Args:
        report_time: seconds to text.
    """
    study = matrix.study
    rows = [("setting", "runs", "steps", "tokens", "live at first", "FLOPs a run", "dense / sparse", "time a run")]
    for cells in matrix.settings:
        cell, made = cells[0], plan.make_plan(cells[0].config)
        seconds = cell.dense / study.flops_per_second if study.flops_per_second else None
        rows.append((
            cell.label, str(len(runs_of(cells))), f"{cell.steps:,}", f"{made.tokens:,}", f"{made.live:,}",
            f"{cell.flops:.3g}", f"{cell.dense / cell.flops:.2f}x", report_time(seconds) if seconds else "unknown",
        ))  # fmt: skip
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(x.ljust(w) if i == 0 else x.rjust(w) for i, (x, w) in enumerate(zip(r, widths, strict=True)))
        for r in rows
    ]
    total = sum(c.dense * n for cells in matrix.settings for c, n in [(cells[0], len(runs_of(cells)))])
    runs = sum(len(runs_of(cells)) for cells in matrix.settings)
    lines.append(
        f"{runs} runs, {total:.3g} dense-equivalent FLOPs"
        + (
            f": about {report_time(total / study.flops_per_second)} at {study.flops_per_second:.3g} FLOPs a second "
            "(study.flops_per_second)"
            if study.flops_per_second
            else "; set study.flops_per_second to have the time estimated"
        )
    )
    return "\n".join(lines)


def runs_of(cells: list[Cell]) -> list[Cell]:
    """The cells of a setting that will run: every peak with the first seed, the other seeds with one peak."""
    first = cells[0].seed
    return [c for c in cells if c.seed == first or c.peak == cells[0].peak]
