"""Several processes that train one run together, as torchrun would start them: forks of the tests' process."""

import io
import os
import socket
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from modelzoo.config.loading import yaml12
from modelzoo.processes import World
from tests import commands
from tests.support import examples, write_manifest, write_shard


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


def write_data(folder: Path, examples_of_val: int) -> Path:
    """A toy's shards: 64 examples to train on, and a validation set."""
    for split, n in (("train", 64), ("val", examples_of_val)):
        write_shard(folder / split / "0.h5", examples(n, 12, 37, n))
        write_manifest(folder / split)
    return folder


def write_config(data: Path, path: Path, backend: Mapping[str, object], init: Mapping[str, object], **base) -> Path:
    """A config of batches of 16 on `data`.

    Args:
        backend: of trainer.init.backend, over one thread a process; those of `init` go over them.
        init: sections that replace or add to those of `base`.
    """
    sections = {"seed": 7, "precision": {"enabled": False}, "loggers": ["JSONLLogger"], **base, **init}
    sections["backend"] = {"num_threads": 1, **backend, **init.get("backend", {})}
    loaders = {
        "train_dataloader": {"data_dir": str(data / "train"), "batch_size": 16, "shuffle": True},
        "val_dataloader": {"data_dir": str(data / "val"), "batch_size": 4},
    }
    path.write_text(yaml12.dump({"trainer": {"init": sections, "fit": loaders}}), encoding="utf-8")
    return path


def words(config: Path, folder: Path, *more: object) -> list[object]:
    """A command line that trains with `config` in `folder`."""
    return ["CPU", "-p", config, "-m", "train_and_eval", "-o", folder, *more]
