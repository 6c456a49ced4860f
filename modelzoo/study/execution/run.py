"""`-m study`: runs the matrix of a study file, one ordinary run after the other, and reports. Imports no torch.

Every run is a folder that `-m train_and_eval` made in a process of its own: finished ones are skipped, killed ones
resume where they stopped, and one that fails is named while the others still run.
"""

import contextlib
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from typing import NamedTuple

from modelzoo import processes
from modelzoo.backends import arithmetic
from modelzoo.config.errors import UserError
from modelzoo.entry import explain_os_error
from modelzoo.lock import Busy
from modelzoo.progress import format_duration
from modelzoo.reading import load_json, open_regular
from modelzoo.study.execution.progress import Progress, last_words
from modelzoo.study.matrix import matrix as grid
from modelzoo.study.matrix.cells import CellFiles
from modelzoo.study.matrix.matrix import Cell, Matrix

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
        words = ["-p", path, "-m", "study", *(["-o", output] if output else [])]
        print(f"next       python run.py {shlex.join(words)}")
        return
    _write(matrix)
    i, n = options.share
    mine = sorted(sorted(range(len(matrix.settings)), key=lambda s: -matrix.settings[s][0].dense)[i::n])
    if options.engine == "ray":
        from modelzoo.study.execution import on_ray

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
    losses = {c.peak: loss for c in first if (loss := files(matrix, c).final_loss) is not None}
    losses = {peak: loss for peak, loss in losses.items() if math.isfinite(loss)}
    return min(losses, key=losses.__getitem__) if losses else cells[0].peak


def files(matrix: Matrix, cell: Cell) -> CellFiles:
    return CellFiles(matrix.study.output, cell)


def _write(matrix: Matrix) -> None:
    """Write the config of every run into configs/.

    Raises:
        UserError: a run that has begun did so with another config, start checkpoint or data.
    """
    for kind in ("configs", "runs", "logs"):
        os.makedirs(os.path.join(matrix.study.output, kind), exist_ok=True)
    for cell in matrix.cells:
        files(matrix, cell).write_config(lambda line: print(line, file=sys.stderr))


def _run(matrix: Matrix, cell: Cell, options: Options, progress: Progress) -> bool:
    """Run one cell to its end. False if it failed, which is printed; its log holds the reason. The study goes on."""
    own = files(matrix, cell)
    if own.is_finished:
        progress.passed(cell)
        return True
    try:
        code = _call(own, options, progress)
    except OSError as e:  # no room for its log, no process to be had
        progress.failed(cell, f"(not begun): {explain_os_error(e)}")
        return False
    if code == Busy.exit_code:
        progress.passed(cell, "busy       another process is at")
        return True
    if code == 0 and own.is_finished:
        progress.ended(cell, own.final_loss)
        return True
    progress.failed(cell, f"(exit code {code}): {last_words(own.log)}")
    return False


def _call(own: CellFiles, options: Options, progress: Progress) -> int:
    """Run one cell in a process of its own; its exit code.

    Raises:
        OSError: its log cannot be written, or no process can be made.
    """
    code = RUN.format(parent=os.getpid())
    command = [sys.executable, "-c", code, options.target, "-p", own.config, "-m", "train_and_eval", "-o", own.folder]
    command += ["--devices", "1"]  # a study spreads its runs; each is one process
    environment = processes.leave_ranks(os.environ)  # the rank that this one was given is not the run's
    with open(own.log, "ab") as out:  # the run locks its folder, so one that outlives this process is not begun twice
        child = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
        with _handed_on(child):
            while child.poll() is None:
                progress.update(own.cell, _last_step(own.run.metrics))
                time.sleep(POLL)
    return child.returncode


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


def _last_step(metrics: str) -> int:
    """The step of a log's last record, for the live line; 0 where it cannot be read."""
    try:
        with open_regular(metrics) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            step = load_json(file.read().splitlines()[-1])["step"]
    except (OSError, ValueError, IndexError, KeyError, TypeError, RecursionError):
        return 0
    return step if isinstance(step, int) and 0 <= step < 2**53 else 0


def _close(matrix: Matrix, path: str, failed: list[str], options: Options) -> None:
    output = matrix.study.output
    wanted = [c for cells in matrix.settings for c in cells if _wanted(matrix, cells, c)]
    open_ = []
    for c in wanted:
        own = files(matrix, c)
        if not own.is_finished:
            open_.append(c.name)
        elif own.final_loss is None:
            print(
                f"note       {own.run.metrics}: has no validation loss of the last step, {c.steps}: its "
                "learning rate was not compared",
                file=sys.stderr,
            )
    report, problem = os.path.join(output, "report.html"), None
    if len(open_) < len(wanted):
        print(f"done       {len(wanted) - len(open_)} of {len(wanted)} runs")
        try:
            print(_report(matrix, wanted, report, os.path.splitext(os.path.basename(path))[0]))
        except UserError as e:  # the runs that failed are named all the same
            problem = f"{report}: not written: {e}; the same command writes it, and skips the finished runs"
    lines = [problem] if problem else []
    if failed:
        lines.append(
            f"{len(failed)} of {len(wanted)} runs failed: {', '.join(failed)}; their output is in "
            f"{os.path.join(output, 'logs')}; the same command tries them again and skips the finished ones"
        )
    if lines:
        raise UserError("\n".join(lines))
    if open_:
        print(f"open       {len(open_)} runs of other shares; the share that ends last writes the report again")
    if len(open_) < len(wanted):
        print(f"next       open {shlex.quote(report)} in a browser")


def _report(matrix: Matrix, wanted: list[Cell], path: str, name: str) -> str:
    """Write the report of the finished runs; what was written, in words."""
    from modelzoo.study.reports import report

    done = [c for c in wanted if files(matrix, c).is_finished and c.peak == _peak(matrix, c)]
    rates: dict[str, dict[float, float]] = {}
    for cell in matrix.cells:
        first = cell.seed == matrix.study.seeds[0]
        if first and cell.peak is not None and (loss := files(matrix, cell).final_loss) is not None:
            rates.setdefault(cell.label, {})[cell.peak] = loss
    rate = matrix.study.learning_rate
    folders = [(files(matrix, c).folder, c.label) for c in done]
    return report.write_study(folders, rates, path, name, rate.others if rate else None)


def _peak(matrix: Matrix, cell: Cell) -> float | None:
    return best_peak(matrix, next(cells for cells in matrix.settings if cells[0].label == cell.label))


def _wanted(matrix: Matrix, cells: list[Cell], cell: Cell) -> bool:
    return cell.seed == cells[0].seed or cell.peak == best_peak(matrix, cells)
