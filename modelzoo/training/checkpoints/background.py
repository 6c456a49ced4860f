"""Writing a checkpoint while training goes on: a copy of its tensors, and the thread that writes what was copied."""

import atexit
import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from modelzoo import host
from modelzoo.entry import INTERRUPTED
from modelzoo.progress import format_size
from modelzoo.sparsity.parameter import PackedParameter
from modelzoo.train_state import TrainState

Files = Mapping[str, Mapping[str, Tensor]]  # by file stem, then by name
SHARE = 3 / 4  # of the machine's memory that a run and the copy may take; the rest is for activations and data


class HostCopy:
    """The tensors of a checkpoint in host memory, as they were at one step. The next copy takes the same memory."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, str], Tensor] = {}
        self._arrival: torch.cuda.Event | None = None

    def take(self, files: Files) -> dict[str, dict[str, Tensor]]:
        """The tensors as they are now, read one by one; the copy before is lost. A GPU's are there after `wait`.

        Raises:
            RuntimeError: no memory is left.
        """
        found: dict[str, dict[str, Tensor]] = {}
        self._arrival = None
        for stem, tensors in files.items():
            # not by `items`: the last tensor would be kept on its device while the next is made whole
            found[stem] = {name: self._copy(self._held.get((stem, name)), tensors[name]) for name in tensors}
        self._held = {(stem, name): x for stem, tensors in found.items() for name, x in tensors.items()}
        if self._arrival is not None:
            self._arrival.record()  # in the stream of the copies: steps that are queued from here on come after them
        return found

    def _copy(self, held: Tensor | None, x: Tensor) -> Tensor:
        """`x` in host memory, in that of `held` where it fits."""
        if held is None or held.shape != x.shape or held.dtype != x.dtype:
            held = torch.empty(x.shape, dtype=x.dtype, pin_memory=x.is_cuda)
        if x.is_cuda and self._arrival is None:
            self._arrival = torch.cuda.Event(blocking=True)
        return held.copy_(x.detach(), non_blocking=True)

    def wait(self) -> None:
        """Wait until the copy is whole."""
        if self._arrival is not None:
            self._arrival.synchronize()


def explain_shortage(files: Files, run: TrainState, ranks: int) -> str | None:
    """Why a copy of a checkpoint's tensors does not fit the memory of this machine; None where it does.

    It is compared with what `run` holds in host memory at all times, so the answer is the same at every launch.

    Args:
        ranks: how many processes hold that much here.
    """
    total, copy = host.total_memory(), sum(_count_copy(part[name]) for part in files.values() for name in part)
    gradients = sum(p.nbytes for p in run.model.parameters() if p.requires_grad and p.is_cpu)
    times = ranks if run.shares is None else 2  # in their shares over all ranks, and gathered for the checkpoint
    held = times * (gradients + sum(x.nbytes for x in _list_held(files, run) if x.is_cpu))
    if total is None or held + copy <= SHARE * total:
        return None
    return f"a copy of {format_size(copy)} next to the {format_size(held)} held is too much for {format_size(total)}"


def _count_copy(x: Tensor) -> int:
    """Bytes of a copy of `x`; pinned memory is had in powers of two."""
    return 1 << (x.nbytes - 1).bit_length() if x.is_cuda and x.nbytes else x.nbytes


def _list_held(files: Files, run: TrainState) -> list[Tensor]:
    """What a checkpoint is made of, in the form in which `run` holds it: of packed weights the live blocks alone."""
    if run.shares is not None:
        return [x for part in files.values() for x in part.values()]
    moments = [x for entries in run.optimizer.state.values() for x in entries.values() if isinstance(x, Tensor)]
    masks = [p.mask for p in run.sparsity.parameters if not isinstance(p, PackedParameter)]
    return [*run.parameters.values(), *moments, *masks, *run.sparsity.explored.bits.values()]


class GivenUp(Exception):
    """The run has ended without waiting for a checkpoint, which does not take its place then."""


class Writer:
    """A thread that writes one checkpoint at a time, from a copy.

    Args:
        wanted: whether to copy at all.
        note: is called with a line where memory holds no copy.
    """

    def __init__(self, wanted: bool, note: Callable[[str], None]):
        self._copies: bool | None = None if wanted else False  # None: not decided yet
        self._copy, self._note = HostCopy(), note
        self._thread: threading.Thread | None = None
        self._done = threading.Event()
        self._saved: tuple[str, int] | None = None
        self._error: BaseException | None = None
        self._placing, self._given_up = threading.Lock(), False

    def start(
        self,
        files: Files,
        run: TrainState,
        ranks: int,
        write: Callable[[Files, AbstractContextManager], tuple[str, int]],
    ) -> bool:
        """Copy a checkpoint's tensors and call `write` with the copy in the thread; the one before was waited for.

        Args:
            ranks: of `explain_shortage`.
            write: returns the checkpoint's path and step. It enters the context to put files in their place.

        Returns:
            Whether it did: False where no copy is wanted, or none fits.
        """
        if self._copies is None:
            self._decide(explain_shortage(files, run, ranks))
        if not self._copies:
            return False
        try:
            copied = self._copy.take(files)
        except RuntimeError as e:  # so torch words that no memory is left
            self._decide(" ".join(str(e).split())[:120])
            return False

        done = self._done = threading.Event()

        def work() -> None:
            try:
                self._copy.wait()
                self._saved = write(copied, self._permit())
            except BaseException as e:  # in a thread nothing else would report it
                self._error = e
            finally:
                done.set()

        self._thread = threading.Thread(target=work, name="write checkpoint", daemon=True)  # `give_up` ends it
        try:
            self._thread.start()
        except RuntimeError:  # no more threads: training waits
            work()
        return True

    def _decide(self, short: str | None) -> None:
        self._copies = short is None
        if short is not None:
            self._copy = HostCopy()
            self._note(f"note       training waits while a checkpoint is written: {short}")

    @property
    def writing(self) -> bool:
        """Whether a checkpoint is being written."""
        # not `is_alive`: a Ctrl-C inside Python 3.11's `join` marks a thread that runs as stopped (bpo-45274)
        return self._thread is not None and not self._done.is_set()

    def finish(self) -> tuple[str, int] | None:
        """Wait for what is being written; what `write` returned, or None if nothing was begun since the last time.

        Raises:
            BaseException: what `write` raised.
        """
        while self.writing:
            self._done.wait(0.2)  # not for ever: a signal that reaches the other thread would wake nobody here
        saved, error = self._saved, self._error
        self._thread = self._saved = self._error = None
        if error is not None:
            raise error
        return saved

    def give_up(self) -> None:
        """Wait for nothing: what is being written does not take its place any more, and the process may end."""
        if self.writing:
            with self._placing:
                self._given_up = True
            atexit.register(self._end_process)

    @contextlib.contextmanager
    def _permit(self) -> Iterator[None]:
        with self._placing:
            if self._given_up:
                raise GivenUp
            yield

    def _end_process(self) -> None:
        """End before the interpreter does: it would tear the thread out of a library, which aborts then."""
        if self.writing:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):
                    stream.flush()
            os._exit(INTERRUPTED)
