"""`-m study`: runs the matrix of a study file, one ordinary run after the other, and reports. Imports no torch.

Every run is a folder that `-m train_and_eval` made in a process of its own: finished ones are skipped, killed ones
resume where they stopped, and one that fails is named while the others still run.
"""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from typing import NamedTuple

from modelzoo.backends import arithmetic
from modelzoo.config.errors import UserError
from modelzoo.config.load import dump
from modelzoo.files import write_text
from modelzoo.lock import Busy
from modelzoo.progress import format_duration
from modelzoo.study import matrix as grid
from modelzoo.study.matrix import Cell, Matrix
from modelzoo.study.progress import Progress
from modelzoo.training import logs
from modelzoo.training.run_folder import RunFolder

POLL = 0.5  # seconds between looks at a run's log
# run.py, installed or not; a run whose study was killed ends as after SIGTERM, with a checkpoint
RUN = (
    "import signal, sys; from modelzoo import host; host.end_with_parent({parent}, signal.SIGTERM); "
    "from modelzoo.cli import main; sys.exit(main())"
)


class Options(NamedTuple):
    """Options of the command line: the device, this process's share (i of n), the engine, whether only to print."""

    target: str = "auto"
    share: tuple[int, int] = (0, 1)
    engine: str = "local"
    dry: bool = False


def run_study(path: str, overrides: list[str], output: str | None, options: Options) -> None:
    """Run this process's share of the study at `path`, and report."""
    matrix = grid.read_matrix(path, overrides, output)
    study = matrix.study
    print(f"study      {path} -> {study.output}\n{grid.describe_matrix(matrix, format_duration)}")
    print("\n".join(_arithmetic(matrix, options.target)))
    if options.dry:
        print(f"next       python run.py -p {path} -m study" + (f" -o {output}" if output else ""))
        return
    _write(matrix)
    i, n = options.share
    mine = sorted(sorted(range(len(matrix.settings)), key=lambda s: -matrix.settings[s][0].dense)[i::n])
    if options.engine == "ray":
        from modelzoo.study import on_ray

        failed = on_ray.run(_alone, [(path, overrides, output, options.target, s) for s in mine], options.target)
    else:
        progress = Progress(sum(c.dense for s in mine for c in grid.runs_of(matrix.settings[s])))
        failed = [name for s in mine for name in _setting(matrix, matrix.settings[s], options, progress)]
    _close(matrix, path, failed, options)


def _arithmetic(matrix: Matrix, target: str) -> list[str]:
    """The arithmetic that the runs will use, each answer once; their own logs repeat it."""
    inits = [c.config.trainer.init for c in matrix.cells]
    found = [line for i in inits for line in arithmetic.describe(target, i.backend, i.precision)]
    return [f"arithmetic {line}" for line in dict.fromkeys(found)]


def _alone(path: str, overrides: list[str], output: str | None, target: str, index: int) -> tuple[str, list[str]]:
    """One setting of a study in a process of its own: its label, and the runs that failed."""
    matrix = grid.read_matrix(path, overrides, output)
    cells = matrix.settings[index]
    progress = Progress(sum(c.dense for c in grid.runs_of(cells)))
    return cells[0].label, _setting(matrix, cells, Options(target), progress)


def _setting(matrix: Matrix, cells: list[Cell], options: Options, progress: Progress) -> list[str]:
    """Run one setting: all peaks with the first seed, then the other seeds with the best. Returns what failed."""
    first = [c for c in cells if c.seed == cells[0].seed]
    failed = [c.name for c in first if not _run(matrix, c, options, progress)]
    peak = best_peak(matrix, cells)
    others = [c for c in cells if c.seed != cells[0].seed and c.peak == peak]
    return failed + [c.name for c in others if not _run(matrix, c, options, progress)]


def best_peak(matrix: Matrix, cells: list[Cell]) -> float | None:
    """The peak whose run with the first seed ends with the lowest validation loss; the first where none has ended."""
    first = [c for c in cells if c.seed == cells[0].seed]
    losses = {c.peak: loss for c in first if (loss := final_loss(folder(matrix, c), c.steps)) is not None}
    losses = {peak: loss for peak, loss in losses.items() if math.isfinite(loss)}
    return min(losses, key=losses.__getitem__) if losses else cells[0].peak


def folder(matrix: Matrix, cell: Cell) -> str:
    return os.path.join(matrix.study.output, "runs", cell.name)


def files(matrix: Matrix, cell: Cell) -> RunFolder:
    return RunFolder.of(cell.config.trainer.init, folder(matrix, cell))


def final_loss(run_folder: str, steps: int) -> float | None:
    """Validation loss at the last step, or None."""
    path = RunFolder(run_folder).metrics
    records = logs.read(path) if os.path.exists(path) else []
    return next((r["loss"] for r in records if r["kind"] == "validation" and r["step"] == steps), None)


def _write(matrix: Matrix) -> None:
    """Write the config of every run into configs/.

    Raises:
        UserError: a run that has begun did so with another config.
    """
    for kind in ("configs", "runs", "logs"):
        os.makedirs(os.path.join(matrix.study.output, kind), exist_ok=True)
    for cell in matrix.cells:
        path = _config(matrix, cell)
        text = dump(cell.config, f"one run of a study: {cell.name}")
        if _text(path) == text:
            continue
        if os.path.exists(files(matrix, cell).metrics):
            raise UserError(
                f"{folder(matrix, cell)}: began with another config than the study now asks for; give the changed "
                f"study another output (-o), or remove that folder and {path}"
            )
        write_text(path, text)


def _text(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _config(matrix: Matrix, cell: Cell) -> str:
    return os.path.join(matrix.study.output, "configs", f"{cell.name}.yaml")


def finished(matrix: Matrix, cell: Cell) -> bool:
    """Whether the checkpoint of the last step is there: it is written last, and whole or not at all."""
    return os.path.isfile(os.path.join(files(matrix, cell).checkpoints, f"step_{cell.steps}", "manifest.json"))


def _run(matrix: Matrix, cell: Cell, options: Options, progress: Progress) -> bool:
    """Run one cell to its end. False if it failed, which is printed; its log holds the reason."""
    if finished(matrix, cell):
        progress.passed(cell)
        return True
    log = os.path.join(matrix.study.output, "logs", f"{cell.name}.txt")
    command = [
        sys.executable,
        "-c",
        RUN.format(parent=os.getpid()),
        options.target,
        "-p",
        _config(matrix, cell),
        "-m",
        "train_and_eval",
    ]
    # A run is one process: the rank that torchrun gave this one is not the run's.
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")}
    with open(log, "ab") as out:  # the run locks its folder, so one that outlives this process is not begun twice
        child = subprocess.Popen(
            [*command, "-o", folder(matrix, cell)], stdout=out, stderr=out, env=environment, start_new_session=True
        )
        with _handed_on(child):
            while child.poll() is None:
                progress.update(cell, _last_step(folder(matrix, cell)))
                time.sleep(POLL)
    if child.returncode == Busy.exit_code:
        progress.passed(cell, "busy       another process is at")
        return True
    if child.returncode == 0 and finished(matrix, cell):
        progress.ended(cell, final_loss(folder(matrix, cell), cell.steps))
        return True
    progress.failed(cell, child.returncode, log)
    return False


@contextlib.contextmanager
def _handed_on(child: subprocess.Popen):
    """Ctrl-C and SIGTERM end the run first, with a checkpoint, and then this process; a second one ends it at once."""

    def handler(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    except BaseException:
        print("\nstopping the run after its step; once more stops at once", file=sys.stderr)
        child.terminate()
        try:
            child.wait()
        except KeyboardInterrupt:
            child.terminate()
            child.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _last_step(run_folder: str) -> int:
    try:
        with open(RunFolder(run_folder).metrics, "rb") as file:
            file.seek(max(0, os.path.getsize(file.name) - 4096))
            return json.loads(file.read().splitlines()[-1])["step"]
    except (OSError, ValueError, IndexError):
        return 0


def _close(matrix: Matrix, path: str, failed: list[str], options: Options) -> None:
    output = matrix.study.output
    wanted = [c for cells in matrix.settings for c in cells if _wanted(matrix, cells, c)]
    open_ = [c.name for c in wanted if not finished(matrix, c)]
    if len(open_) < len(wanted):
        from modelzoo.study import report

        shown = [(folder(matrix, c), c.label) for c in wanted if finished(matrix, c) and c.peak == _peak(matrix, c)]
        rates: dict[str, dict[float, float]] = {}
        for cell in matrix.cells:
            loss = final_loss(folder(matrix, cell), cell.steps)
            if cell.seed == matrix.study.seeds[0] and cell.peak is not None and loss is not None:
                rates.setdefault(cell.label, {})[cell.peak] = loss
        name = os.path.splitext(os.path.basename(path))[0]
        print(f"done       {len(wanted) - len(open_)} of {len(wanted)} runs")
        print(report.write_study(shown, rates, os.path.join(output, "report.html"), name))
    if failed:
        raise UserError(
            f"{len(failed)} of {len(wanted)} runs failed: {', '.join(failed)}; their output is in "
            f"{os.path.join(output, 'logs')}; the same command tries them again and skips the finished ones"
        )
    if open_:
        print(f"open       {len(open_)} runs of other shares; the share that ends last writes the report again")
    if len(open_) < len(wanted):
        print(f"next       open {os.path.join(output, 'report.html')} in a browser")


def _peak(matrix: Matrix, cell: Cell) -> float | None:
    return best_peak(matrix, next(cells for cells in matrix.settings if cells[0].label == cell.label))


def _wanted(matrix: Matrix, cells: list[Cell], cell: Cell) -> bool:
    return cell.seed == cells[0].seed or cell.peak == best_peak(matrix, cells)
