"""Several processes that train one run together, as torchrun would start them: forks of the tests' process."""

import io
import os
import socket
import tempfile
from collections.abc import Sequence

from modelzoo.processes import World
from tests import commands


class Launch:
    """`count` ranks of one command.

    Attributes:
        ranks: their processes, by rank.
    """

    def __init__(self, arguments: Sequence, count: int, port: int | None = None, size: int | None = None):
        """`arguments`: a command line, or one a rank. `size`: of the world, where some of it is missing."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = port or server.getsockname()[1]
        self.out = [tempfile.TemporaryFile("w+", encoding="utf-8") for _ in range(count)]  # noqa: SIM115
        each = arguments if isinstance(arguments[0], list) else [arguments] * count
        self.ranks = []
        for rank in range(count):
            env = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
            env |= World(rank, size or count, rank, "127.0.0.1", port).environment()
            self.ranks.append(commands.start(each[rank], self.out[rank], env))

    def wait(self) -> list[int]:
        """The exit code of each rank."""
        return [process.wait(120) for process in self.ranks]

    def text(self, rank: int) -> str:
        """What a rank has printed."""
        self.out[rank].flush()
        self.out[rank].seek(0, io.SEEK_SET)
        return self.out[rank].read()


def run_ranks(arguments: Sequence[object], count: int) -> Launch:
    """Run a command with `count` ranks, all of which must end well."""
    launch = Launch(arguments, count)
    codes = launch.wait()
    assert not any(codes), (codes, [launch.text(r)[-2000:] for r in range(count)])
    return launch
