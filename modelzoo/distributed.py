"""Ranks: the processes that train one run together. torch.distributed is under it, and nothing else uses that, but for
`backends.sharding`, which hands a model to FSDP.

One process alone is rank 0 of 1: every method then returns at once, and torch.distributed is not even imported.
"""

import contextlib
import json
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from modelzoo.config.errors import UserError
from modelzoo.processes import World

TIMEOUT = 600.0  # seconds that a rank waits for the others: a checkpoint of theirs, a slow disk
REPORTS = 5.0  # seconds that a rank waits to learn why another one is gone
Result = TypeVar("Result")


class Lost(UserError):
    """A rank is gone, or does not answer. The lowest of those that are left reports it."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: the same command may succeed later

    def __init__(self, text: str, quiet: bool):
        super().__init__(text)
        self.quiet = quiet


class Ended(UserError):
    """Another rank has met with an error. Rank 0 reports it; the others say nothing of it."""

    def __init__(self, text: str, quiet: bool):
        super().__init__(text)
        self.quiet = quiet


class Ranks:
    """The ranks of a run.

    Attributes:
        rank: this process's number, from 0. size: how many there are. local: its number on this machine.
    """

    def __init__(self, world: World | None = None, store: Any = None, runs: Callable[[int], bool] = lambda rank: True):
        """`store`: where ranks leave word for each other. `runs`: whether a rank does, as far as one can know."""
        self.rank, self.size, self.local = (world.rank, world.size, world.local) if world else (0, 1, 0)
        self._store, self._runs = store, runs

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which talks and writes."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set on any rank."""
        if self.size == 1:
            return flag
        found = torch.tensor([flag], dtype=torch.int32)
        with self._calling("a flag"):
            load_library().all_reduce(found, op=load_library().ReduceOp.MAX)
        return bool(found)

    def gather(self, value: Any) -> list[Any]:
        """The JSON value of each rank, in their order, on all of them."""
        if self.size == 1:
            return [value]
        data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        with self._calling("values"):
            sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
            load_library().all_gather(sizes, torch.tensor([len(data)]))
            padded = torch.zeros(max(map(int, sizes)), dtype=torch.uint8)
            padded[: len(data)] = data
            found = [torch.empty_like(padded) for _ in range(self.size)]
            load_library().all_gather(found, padded)
        return [json.loads(bytes(x[: int(n)].tolist())) for x, n in zip(found, sizes, strict=True)]

    def first_does(self, action: Callable[[], Result]) -> Result:
        """What `action` returns on rank 0, a JSON value, on all ranks; the others wait.

        Raises:
            UserError: that which it raised there, on every rank.
        """
        if self.size == 1:
            return action()
        value, error = None, None
        if self.first:
            try:
                value = action()
            except UserError as e:
                error = e
        text = [value, str(error) if error else None]
        value, reason = self.gather(text if self.first else None)[0]
        if error is not None:
            raise error
        if reason is not None:
            raise Ended(reason, quiet=True)
        return value

    def require_same(self, facts: Mapping[str, str], remedy: str) -> None:
        """Refuse to run where ranks differ from rank 0 in one of `facts` (what it is: its value).

        Raises:
            UserError: names the fact and the ranks.
        """
        found = self.gather(dict(facts))
        for what in facts:
            if other := [r for r, theirs in enumerate(found) if theirs[what] != found[0][what]]:
                verb = "differs" if len(other) == 1 else "differ"
                raise UserError(f"{what}: {name_ranks(other)} {verb} from rank 0; {remedy}")

    def exchange(self, flat: Tensor, partner: int) -> Tensor:
        """The tensor of rank `partner`, which gets `flat` in return: the same shape and type."""
        found = torch.empty_like(flat)
        with self._calling("gradients"):
            _exchange(flat, found, partner)
        return found

    def start_sum(self, flat: Tensor) -> Any:
        """Begin to sum `flat` over the ranks, in place; `finish` waits for it."""
        with self._calling("gradients"):
            return load_library().all_reduce(flat, async_op=True)

    def sum(self, x: Tensor) -> Tensor:
        """`x`, summed over the ranks in place: the same bits on all of them."""
        with self._calling("a sum"):
            load_library().all_reduce(x)
        return x

    def share_rows(self, x: Tensor) -> Tensor:
        """This rank's rows of `x` (dimension 0), as `torch.chunk` cuts them: the last ranks may have fewer, or none."""
        rows = -(-x.shape[0] // self.size)
        return x[self.rank * rows : (self.rank + 1) * rows]

    def gather_rows(self, part: Tensor, shape: torch.Size) -> Tensor:
        """The inverse: the tensor of `shape` of which each rank has `part`."""
        rows = -(-shape[0] // self.size)
        padded = part.new_zeros(rows, *shape[1:])
        padded[: len(part)] = part
        found = part.new_empty(rows * self.size, *shape[1:])
        raw = (x.view(torch.uint8) if x.dtype == torch.bool else x for x in (found, padded))
        with self._calling("weights"):
            load_library().all_gather_into_tensor(*raw)
        return found[: shape[0]]

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Around a forward and backward pass in which the library itself exchanges weights and gradients.

        Raises:
            Lost: ranks are gone, or do not answer; Ended: they have met with an error.
        """
        with self._calling("weights", _is_of_connection) if self.size > 1 else contextlib.nullcontext():
            yield

    def mesh(self, kind: str) -> Any:
        """All ranks in a row, as torch's own sharding takes them; `kind` is cpu or cuda."""
        from torch.distributed.device_mesh import init_device_mesh

        return init_device_mesh(kind, (self.size,))

    def finish(self, works: list[Any]) -> None:
        """Wait for sums that were begun, and empty the list."""
        with self._calling("gradients"):
            while works:
                works.pop(0).wait()

    def leave(self, reason: str | None) -> bool:
        """Take leave of the others: in step with them, or with the reason of an error, for them to report.

        Returns:
            Whether rank 0 reports the error: its own is the same, or it has learnt of this one.
        """
        known = False
        with contextlib.suppress(Exception):  # who hosts the store may be gone
            self._store.set(f"end/{self.rank}", reason or "")
        with contextlib.suppress(Exception):
            if reason is None:
                load_library().barrier()  # else who is still in the last exchange would take this one for lost
        with contextlib.suppress(Exception):
            load_library().destroy_process_group()  # closes connections: who waits for this rank learns of it at once
        with contextlib.suppress(Exception):
            if reason is not None and self.first:  # it may host the store, in which the others look for the reason
                self._await("read", range(1, self.size))
            elif reason is not None and self._await("end", [0]) and self._knows("end/0"):
                theirs = self._store.get("end/0").decode()
                known = not theirs or theirs.startswith(reason[:100])
                self._store.set(f"read/{self.rank}", "")
        return known

    @contextlib.contextmanager
    def _calling(self, what: str, means: Callable[[Exception], bool] = lambda e: True) -> Iterator[None]:
        """Turn a collective that fails into one line that names the ranks at fault.

        Args:
            means: whether an error is of the connection; others pass.

        Raises:
            Lost: ranks are gone, or do not answer; Ended: they have met with an error.
        """
        try:
            yield
        except (RuntimeError, ValueError) as e:
            if not means(e):
                raise
            traceback.clear_frames(e.__traceback__)  # what waits there would keep the connections open
            with contextlib.suppress(Exception):  # closes them: who waits for this rank learns of it at once
                load_library().destroy_process_group()
            ended, silent = self._ask()
            if ended:
                rank, reason = next(iter(ended.items()))
                raise Ended(f"rank {rank} of {self.size} has ended: {reason}", quiet=not self.first) from None
            where = name_ranks(silent) if silent else "a rank"
            first = " ".join(str(e).split())[:120]
            lowest = min((r for r in range(self.size) if r not in silent), default=self.rank)
            raise Lost(
                f"{where} of {self.size}: gone, or no answer ({what} could not be exchanged: {first}); the same "
                "command goes on from the last checkpoint",
                quiet=self.rank != lowest,
            ) from None

    def _ask(self) -> tuple[dict[int, str], list[int]]:
        """Which ranks have ended, with their reasons, and which neither report an end nor miss another rank."""
        others, until = [r for r in range(self.size) if r != self.rank], time.monotonic() + REPORTS
        try:
            self._store.set(f"missing/{self.rank}", "")
            while True:
                silent = [r for r in others if not self._knows(f"end/{r}") and not self._knows(f"missing/{r}")]
                ended = {r: self._store.get(f"end/{r}").decode() for r in others if self._knows(f"end/{r}")}
                if not any(map(self._runs, silent)) or time.monotonic() > until:
                    return {r: text for r, text in ended.items() if text}, silent
                time.sleep(0.05)
        except Exception:  # the store is gone, and with it who hosts it
            return {}, [0] if self.rank else []

    def _await(self, word: str, ranks: Iterable[int]) -> bool:
        """Wait for word of ranks, as far as they run, for REPORTS seconds; whether it has come."""
        until = time.monotonic() + REPORTS
        while not (found := all(self._knows(f"{word}/{r}") or not self._runs(r) for r in ranks)):
            if time.monotonic() > until:
                break
            time.sleep(0.02)
        return found

    def _knows(self, key: str) -> bool:
        return bool(self._store.check([key]))


def _is_of_connection(error: Exception) -> bool:
    return isinstance(error, load_library().DistError) or any(name in str(error) for name in ("gloo", "NCCL"))


def _exchange(flat: Tensor, found: Tensor, partner: int) -> None:
    for work in [load_library().isend(flat, partner), load_library().irecv(found, partner)]:
        work.wait()


ALONE = Ranks()


def load_library() -> Any:
    """torch.distributed."""
    import torch.distributed as dist

    return dist


def name_ranks(ranks: list[int]) -> str:
    """`rank 3`, `ranks 1 and 3`, or `ranks 1, 2, 3 and 60 more`."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    named = ", ".join(map(str, ranks[:3]))
    return f"ranks {named}" + (f" and {len(ranks) - 3} more" if len(ranks) > 3 else "")
