"""Part: the harness itself. A program with a fault put in must be caught; `silent` here means that it was not."""

import contextlib
import errno
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.faults import disturb
from tests.faults.part import Verdict
from tests.faults.part_operations import why_not
from tests.faults.shim import Fault, Mode
from tests.faults.world import World

NAME = "proof"
SHARE = 0  # every case is made once

__all__ = ["NAME", "cases", "run_case", "why_not"]


def _swallow_errors() -> None:
    """A file that cannot be written is not, and nobody hears of it."""
    from modelzoo import files

    whole = files.replacing

    @contextlib.contextmanager
    def replacing(path: str, *rest, **more) -> Iterator[str]:
        try:
            with whole(path, *rest, **more) as temporary:
                yield temporary
        except OSError:
            pass

    files.replacing = replacing


def _write_in_place() -> None:
    """A file is written under its own name, so that a kill leaves half of it."""
    from modelzoo import files

    @contextlib.contextmanager
    def replacing(path: str, *rest, **more) -> Iterator[str]:
        Path(path).open("w").close()  # as many operations as before
        yield path

    files.replacing = replacing


def _remove_first() -> None:
    """The old checkpoints go before the new one is there."""
    import shutil

    from modelzoo.training.checkpoints import saving

    whole = saving.save

    def save(folder: str, *rest):
        shutil.rmtree(folder)
        return whole(folder, *rest)

    saving.save = save


def _no_net() -> None:
    """What goes wrong reaches the user as it was raised."""
    from modelzoo import entry

    entry.run_command = lambda body, *rest: body() or 0


def _write_outside() -> None:
    """A file is written that nobody asked for."""
    from modelzoo import files

    whole = files.write_bytes

    def write_bytes(path: str, data: bytes, *rest, **more) -> None:
        Path("../elsewhere.txt").write_bytes(data)
        whole(path, data, *rest, **more)

    files.write_bytes = write_bytes


CASES: dict[str, tuple[Callable[[], None], str, Mode, str]] = {  # the break, the command, what happens, the verdict
    "errors swallowed": (_swallow_errors, "tokenizer", Mode.FAIL, "silent"),
    "written in place": (_write_in_place, "tokenizer", Mode.KILL_IN, "silent"),
    "checkpoints removed first": (_remove_first, "resume", Mode.KILL_BEFORE, "lost"),
    "no last net": (_no_net, "tokenizer", Mode.FAIL, "traceback"),
    "written outside": (_write_outside, "tokenizer", Mode.COUNT, "outside"),
}


def cases(world: World, n: int, seed: int) -> Iterator[str]:
    """Every broken program, once."""
    yield from CASES


def run_case(world: World, case: str, scratch: Path) -> Verdict:
    """One broken program whose last operation on a path, or first write where that is cut, fails.

    A broken program may have some operations more or less than the whole one, so its neighbours are tried too.
    """
    damage, command, mode, wanted = CASES[case]
    operations = disturb.expected(world, command).operations
    last = 1 + (operations.index("w") if mode is Mode.KILL_IN else operations.rindex("m"))
    for number in sorted(range(max(1, last - 6), last + 7), key=lambda n: abs(n - last)):
        (scratch / str(number)).mkdir()
        fault = Fault(mode, number, errno.ENOSPC, persistent=True)
        verdict = disturb.check(world, command, fault, scratch / str(number), damage)
        if verdict.kind == wanted:
            return Verdict("ok", f"caught: {verdict.detail}")
    return Verdict("silent", f"{case}: the harness found {verdict.kind} ({verdict.detail}), not {wanted}")
