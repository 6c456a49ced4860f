"""How a process joins the others of its launch, and takes leave of them.

torch.distributed waits for ranks that do not come, or are killed on the way, until its timeout is over, and looks at no
signal meanwhile. Here each rank leaves its process number in the store, torch waits in a thread, and this one looks
whether those of this machine still run.
"""

import contextlib
import datetime
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from typing import Any, TypeVar

from modelzoo import host
from modelzoo.config.errors import UserError
from modelzoo.distributed import ALONE, REPORTS, TIMEOUT, Ended, Lost, Ranks, load_library, name_ranks
from modelzoo.processes import World, find_world, has_own_store

PATIENCE = "MEDISWIFT_JOIN_TIMEOUT"  # seconds until all ranks must have joined
USUAL = 300  # of them: a cluster's file system may take minutes to read torch for the first time
POLL = 0.02  # seconds between looks at the others
Result = TypeVar("Result")


@contextlib.contextmanager
def joining(kind: str, timeout: float = TIMEOUT) -> Iterator[Ranks]:
    """Join the other processes of this launch for the body, if there are any (`processes.find_world`).

    Args:
        kind: GPU or CPU, where gradients are.
        timeout: seconds that a collective waits for the others.

    Raises:
        UserError: they cannot be reached, or torch lacks the library for `kind`.
        Lost: some are gone, or have not come in time.
    """
    world = find_world()
    if world is None:
        yield ALONE
        return
    ranks = _join(world, kind, timeout)
    try:
        yield ranks
    except SystemExit:
        ranks.leave(None)
        raise
    except (Ended, Lost):
        ranks.leave("")  # they know
        raise
    except BaseException as e:
        reported = ranks.leave((str(e) or type(e).__name__).splitlines()[0][:300])
        if isinstance(e, UserError):
            e.quiet = reported
        raise
    ranks.leave(None)


def find_patience(text: str | None = None) -> float:
    """Seconds until all must have joined: those of the variable PATIENCE, else USUAL.

    Raises:
        UserError: the variable is no number of seconds.
    """
    text = os.environ.get(PATIENCE, "") if text is None else text
    if not text:
        return USUAL
    if not (text.isascii() and text.isdigit() and 0 < int(text[:9]) <= 86400):
        raise UserError(f"{PATIENCE}={text[:40]}: takes seconds from 1 to 86400; unset it for {USUAL}")
    return int(text)


def _join(world: World, kind: str, timeout: float) -> Ranks:
    dist = load_library()
    if not dist.is_available():
        raise UserError("this torch has no torch.distributed; run one process, or install a build that has it")
    meeting = _Meeting(world, find_patience(), timeout)
    backend = "cpu:gloo,cuda:nccl" if kind == "GPU" else "gloo"
    wait = datetime.timedelta(seconds=timeout)
    for name, value in world.environment().items():
        os.environ.setdefault(name, value)
    try:
        opened = meeting.open()
        name = meeting.await_all()
        store = dist.PrefixStore(f"{name}/run", opened)
        meeting.watch(
            lambda: dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, timeout=wait)
        )
        ends = dist.PrefixStore(f"{name}/ends", opened)  # keeps what may be the store itself
        return Ranks(world, ends, lambda rank: _runs(*meeting.here[rank]))
    except (RuntimeError, ValueError, OSError) as e:
        first = " ".join(str(e).split())[:200]
        raise UserError(
            f"rank {world.rank} of {world.size}: cannot join the others at {world.address}:{world.port} ({first}); "
            "is the port in use, or a rank missing?"
        ) from None


class _Meeting:
    """The ranks of a launch as they come, until each is connected to all.

    A launcher's store outlives the ranks that it starts anew, and what they left there. So rank 0 names a round, the
    others answer to it, and it names those whom it has heard: who is not among them reads what an earlier round left.

    Attributes:
        store: a connection to the store that they share, for this thread alone.
        round: its name, once it is known.
        here: by rank, the machine, the process, when that began, and a name for it.
    """

    def __init__(self, world: World, patience: float, timeout: float):
        self.world, self.patience, self.timeout = world, patience, datetime.timedelta(seconds=timeout)
        self.until = time.monotonic() + patience + (REPORTS if world.rank else 0)  # rank 0 knows who is missing
        self.store: Any = None
        self.round = uuid.uuid4().hex if world.rank == 0 else ""
        self.me = [host.machine_id(), os.getpid(), host.process_start(os.getpid()), uuid.uuid4().hex]
        self.here: dict[int, list] = {world.rank: self.me}

    def open(self) -> Any:
        """Connect to the store, or be it; returns a second connection, which may wait while the first one is asked."""
        if self.world.rank == 0 and not has_own_store():
            served = self.watch(lambda: self._connect(serve=True))
            self.store = self._connect()
            return served
        self.store = self.watch(self._connect)
        return self._connect()

    def _connect(self, serve: bool = False) -> Any:
        world = self.world
        return load_library().TCPStore(
            *(world.address, world.port, world.size, serve, self.timeout), wait_for_workers=False, multi_tenant=serve
        )

    def await_all(self) -> str:
        """Wait until every rank is here; returns the round's name.

        Raises:
            Lost: some have not come in time, or are gone again.
        """
        meet = self._hear if self.world.rank == 0 else self._answer
        if self.world.rank == 0:
            self.store.set("round", self.round)
        while not self._asking(meet):
            self._look()
            time.sleep(POLL)
        return self.round

    def _hear(self) -> bool:
        """Rank 0's part: whether all have answered, which is made known then."""
        for rank in range(1, self.world.size):
            if rank not in self.here and (text := self._read(f"{self.round}/here/{rank}")):
                self.here[rank] = json.loads(text)
        if len(self.here) < self.world.size:
            return False
        self.store.set(f"{self.round}/all", json.dumps(self.here))
        return True

    def _answer(self) -> bool:
        """The others' part: whether rank 0 has heard this one, and all."""
        if (name := self._read("round")) != self.round:
            self.round = name
            self.store.set(f"{name}/here/{self.world.rank}", json.dumps(self.me))
        if not self._heard(found := json.loads(self._read(f"{name}/all") or "{}")):
            return False
        self.here = {int(rank): process for rank, process in found.items()}
        return True

    def _heard(self, found: Mapping[str, list]) -> bool:
        return found.get(str(self.world.rank)) == self.me

    def _read(self, key: str) -> str:
        return self.store.get(key).decode() if self.store.check([key]) else ""

    def watch(self, action: Callable[[], Result]) -> Result:
        """What `action` returns, which waits for others.

        Raises:
            Lost: some have not come in time, or are gone again.
        """
        future: futures.Future[Result] = futures.Future()

        def run() -> None:
            try:
                future.set_result(action())
            except BaseException as e:
                future.set_exception(e)

        threading.Thread(target=run, daemon=True).start()  # one that waits in vain ends with the process
        while not futures.wait([future], POLL).done:
            self._look()
        return future.result()

    def _look(self) -> None:
        """Give up where a rank is gone, where another one has given up, or where the time is over."""
        late = time.monotonic() > self.until
        if self.store is None:
            if late:
                raise TimeoutError(f"no answer within {self.patience:.0f} s")
            return
        size, missing = self.world.size, [r for r in range(self.world.size) if r not in self.here]
        gone = [r for r, process in self.here.items() if not _runs(*process)]
        if text := self._asking(lambda: self._read(f"{self.round}/off")):
            self._leave(text)
        if gone:
            self._give_up(f"{name_ranks(gone)} of {size}: gone before all had joined; run the same command again")
        if late:
            who = name_ranks(missing if self.world.rank == 0 and missing else [0])
            self._give_up(f"{who} of {size}: did not join within {self.patience:.0f} s ({PATIENCE}); was it started?")

    def _give_up(self, reason: str) -> None:
        """Let all that are known give up for one reason."""
        text = json.dumps([reason, self.here])
        self._leave(self._asking(lambda: self.store.compare_set(f"{self.round}/off", "", text).decode()))

    def _leave(self, text: str) -> None:
        """End for a reason that all know, which the lowest of them that runs reports."""
        reason, known = json.loads(text)
        if not self._heard(known):  # an earlier round's
            return
        running = [int(r) for r, process in known.items() if _runs(*process)]
        self._asking(lambda: self.store.set(f"{self.round}/read/{self.world.rank}", ""))
        read, until = [f"{self.round}/read/{r}" for r in running], time.monotonic() + REPORTS
        while self.world.rank == 0 and time.monotonic() < until:  # it may be the store
            if self._asking(lambda: self.store.check(read)):
                break
            time.sleep(POLL)
        raise Lost(reason, quiet=self.world.rank > min(running))

    def _asking(self, question: Callable[[], Result]) -> Result:
        """What the store answers.

        Raises:
            Lost: it is gone, and with it who has it. Each reports it that knows of no lower rank.
        """
        try:
            return question()
        except RuntimeError:
            who = "the launcher" if has_own_store() else f"rank 0 of {self.world.size}"
            running = [r for r, process in self.here.items() if r and _runs(*process)]
            text = f"{who}: gone before all had joined; run the same command again"
            raise Lost(text, quiet=self.world.rank > min(running)) from None


def _runs(machine: str, pid: int, start: str, name: str) -> bool:
    """Whether a process runs, as far as this machine can know."""
    return machine != host.machine_id() or host.is_alive(pid, start)
