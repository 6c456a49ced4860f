"""HDF5 shards as a map from step to batch: seeded order, O(1) resume, the same whatever the number of workers.

    shards = Shards.open(config, vocab_size=50257)
    batch = shards.batch(step)         # a pure function of (files, seed, step)

An epoch's order is torch.randperm seeded with seed + epoch (Model Zoo's rule). What an epoch leaves over after its last
whole batch opens the next batch, so nothing is dropped and the order does not depend on how the run was cut.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import h5py
import numpy as np
import torch
from torch import Tensor

from modelzoo.config.errors import UserError
from modelzoo.config.trainer import DataLoader as Config
from modelzoo.data import format as f


class Shard(NamedTuple):
    path: str
    examples: int
    msl: int
    rows: int  # 3, 5 (VSL), or 0 for a corpus of plain tokens


def find(data_dir: Sequence[str]) -> list[str]:
    """The shard files of the folders, sorted by name within each folder.

    Raises:
        UserError: a folder is missing or holds no shard.
    """
    files = []
    for folder in data_dir:
        if os.path.isfile(folder):
            files.append(folder)
            continue
        if not os.path.isdir(folder):
            raise UserError(
                f"{folder}: no such data folder; make it with `python -m data_preprocessing`, or mend data_dir"
            )
        found = sorted(n for n in os.listdir(folder) if n.endswith(f.SHARD_SUFFIXES))
        if not found:
            raise UserError(f"{folder}: holds no HDF5 shard ({', '.join(f.SHARD_SUFFIXES)})")
        files += [os.path.join(folder, n) for n in found]
    return files


def inspect(path: str, msl: int | None = None) -> Shard:
    """A shard's shape, with everything checked that can be checked without reading its examples.

    Raises:
        UserError: truncated, not HDF5, links that lead outside the file, wrong rank, rows or type, no examples.
    """
    try:
        with h5py.File(path, "r") as file:
            if not isinstance(file.get(f.DATASET, getlink=True), h5py.HardLink):
                raise UserError(f"{path}: has no dataset '{f.DATASET}' of its own (keys: {', '.join(file) or 'none'})")
            data = file[f.DATASET]
            if not isinstance(data, h5py.Dataset) or data.external or data.is_virtual:
                raise UserError(
                    f"{path}: '{f.DATASET}' is not plain data in this file; external and virtual data is refused"
                )
            shape, kind, declared = data.shape, data.dtype, file.attrs.get(f.N_EXAMPLES)
    except UserError:
        raise
    except (OSError, KeyError, RuntimeError) as e:
        reason = "truncated" if "truncated" in str(e) else "not a readable HDF5 file"
        raise UserError(
            f"{path}: {reason}; make this shard again (`python -m data_preprocessing verify` finds such)"
        ) from None
    if kind.kind not in "iu":
        raise UserError(f"{path}: '{f.DATASET}' holds {kind}, not integers")
    if len(shape) == 1:
        if msl is None:
            raise UserError(f"{path}: is a corpus of plain tokens; give max_sequence_length to cut it")
        return _nonempty(Shard(path, max(0, (shape[0] - 1) // msl), msl, 0))
    if len(shape) != 3 or shape[1] not in (len(f.ROWS), len(f.VSL_ROWS)):
        raise UserError(
            f"{path}: '{f.DATASET}' is {list(shape)}; shards are [n, {len(f.ROWS)} or {len(f.VSL_ROWS)}, msl]"
        )
    if declared is not None and int(declared) != shape[0]:
        raise UserError(f"{path}: says n_examples = {int(declared)} but holds {shape[0]}; make this shard again")
    if msl is not None and shape[2] != msl:
        raise UserError(f"{path}: sequences of {shape[2]} tokens, but max_sequence_length is {msl}")
    return _nonempty(Shard(path, shape[0], shape[2], shape[1]))


def _nonempty(shard: Shard) -> Shard:
    if shard.examples == 0 or shard.msl == 0:
        raise UserError(f"{shard.path}: holds no example")
    return shard


@lru_cache(maxsize=2)
def _permutation(n: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


class Shards:
    """Random access to the examples of some folders, and the order in which a run takes them."""

    def __init__(self, parts: list[list[Shard]], weights: list[float] | None, config: Config, vocab_size: int):
        self.parts, self.config, self.vocab_size = parts, config, vocab_size
        self.files = [shard for part in parts for shard in part]
        self.msl, self.rows = self.files[0].msl, self.files[0].rows
        self.starts = np.cumsum([0] + [s.examples for s in self.files])
        sizes = [sum(s.examples for s in part) for part in parts]
        self.total = sum(sizes)
        self.mixed = _mixture(sizes, weights) if weights else None
        self.epoch = config.num_samples or self.total
        self._open: dict[int, h5py.Dataset] = {}

    @classmethod
    def open(cls, config: Config, vocab_size: int, max_positions: int | None = None) -> "Shards":
        """Find and check all shards of a dataloader section.

        Raises:
            UserError: names the file at fault, or the two files or keys that do not go together.
        """
        msl, mixture = config.max_sequence_length, config.mixture
        parts = [
            [inspect(p, msl) for p in find(d)]
            for d in ([m.data_dir for m in mixture] if mixture else [config.data_dir])
        ]
        files = [s for part in parts for s in part]
        for s in files[1:]:
            if (s.msl, s.rows) != (files[0].msl, files[0].rows):
                raise UserError(
                    f"{s.path}: [{s.rows}, {s.msl}] beside {files[0].path}: [{files[0].rows}, {files[0].msl}]; "
                    "shards of one run must agree in rows and sequence length"
                )
        if max_positions is not None and files[0].msl > max_positions:
            raise UserError(
                f"{files[0].path}: sequences of {files[0].msl} tokens, but model.max_position_embeddings is "
                f"{max_positions}; raise it, or pack with --msl {max_positions}"
            )
        if config.use_vsl and files[0].rows != len(f.VSL_ROWS):
            raise UserError(f"{files[0].path}: use_vsl needs attention_span and position_ids rows; pack with --vsl")
        for folder in {os.path.dirname(s.path) for s in files}:
            known = _manifest(folder).get("vocab_size")
            if isinstance(known, int) and known > vocab_size:
                raise UserError(f"{folder}: tokens of a vocabulary of {known}, but model.vocab_size is {vocab_size}")
        return cls(parts, [m.weight for m in mixture] if mixture else None, config, vocab_size)

    def __len__(self) -> int:
        """Examples in an epoch."""
        return self.epoch

    def fingerprint(self) -> str:
        """SHA-256 over what decides the order and content of batches: names, sizes, checksums, seed, batch size."""
        c = self.config
        sums = {
            d: {
                s["name"]: s.get("sha256")
                for s in _manifest(d).get("shards", [])
                if isinstance(s, dict) and "name" in s
            }
            for d in {os.path.dirname(s.path) for s in self.files}
        }
        facts = [
            (
                os.path.basename(s.path),
                s.examples,
                s.msl,
                s.rows,
                sums[os.path.dirname(s.path)].get(os.path.basename(s.path)),
            )
            for s in self.files
        ]
        order = [c.batch_size, c.shuffle, c.shuffle_seed, c.num_samples, [m.weight for m in c.mixture or ()]]
        return hashlib.sha256(json.dumps([facts, order]).encode()).hexdigest()

    def indices(self, step: int) -> list[int]:
        """Global example numbers of the batch of `step`, in order."""
        first = step * self.config.batch_size
        return [self._index(i) for i in range(first, first + self.config.batch_size)]

    def _index(self, position: int) -> int:
        epoch, at = divmod(position, self.epoch)
        if self.config.shuffle:
            at = int(_permutation(self.epoch, (self.config.shuffle_seed or 0) + epoch)[at])
        return int(self.mixed[at % self.total]) if self.mixed is not None else at % self.total

    def batch(self, step: int) -> dict[str, Tensor]:
        """The batch of `step`: int32 tensors [batch_size, msl] by row name."""
        return self.read(self.indices(step))

    def read(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Examples by global number, as int32 tensors [len(indices), msl]. Token ids are checked against vocab_size.

        Raises:
            UserError: an id outside the vocabulary, naming file and example; a shard that cannot be read.
        """
        out = np.empty((len(indices), self.rows or len(f.ROWS), self.msl), dtype=np.int32)
        for row, index in enumerate(indices):
            shard = int(np.searchsorted(self.starts, index, side="right")) - 1
            out[row] = self._example(shard, int(index - self.starts[shard]))
        ids = out[:, (0, 2)]
        if int(ids.max()) >= self.vocab_size or int(ids.min()) < 0:
            self._refuse_ids(indices, ids)
        names = f.VSL_ROWS if self.config.use_vsl else f.ROWS
        return {name: torch.from_numpy(np.ascontiguousarray(out[:, i])) for i, name in enumerate(names)}

    def _example(self, shard: int, index: int) -> np.ndarray:
        s = self.files[shard]
        if shard not in self._open:  # opened here, not in __init__: each worker process needs handles of its own
            self._open[shard] = h5py.File(s.path, "r")[f.DATASET]
        try:
            if s.rows:
                return self._open[shard][index]
            window = self._open[shard][index * s.msl : index * s.msl + s.msl + 1]
            return np.stack((window[:-1], np.ones(s.msl, np.int32), window[1:]))
        except OSError as e:
            raise UserError(
                f"{s.path}: example {index} cannot be read ({str(e)[:80]}); make this shard again"
            ) from None

    def _refuse_ids(self, indices: Sequence[int], ids: np.ndarray) -> None:
        row = int(np.argmax(((ids >= self.vocab_size) | (ids < 0)).any(axis=(1, 2))))
        shard = int(np.searchsorted(self.starts, indices[row], side="right")) - 1
        bad = ids[row][(ids[row] >= self.vocab_size) | (ids[row] < 0)][0]
        raise UserError(
            f"{self.files[shard].path}: example {indices[row] - self.starts[shard]} holds token id {int(bad)}, outside "
            f"model.vocab_size {self.vocab_size}; use the tokenizer's vocabulary size"
        )

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": {}}  # open files do not travel to worker processes


def _mixture(sizes: list[int], weights: list[float]) -> np.ndarray:
    """Example numbers of one epoch in which dataset j has its weight's share: each cycles through its own examples."""
    total = sum(sizes)
    share = np.array(weights) / sum(weights) * total
    counts = np.floor(share).astype(int)
    counts[np.argsort(counts - share, kind="stable")[: total - counts.sum()]] += 1
    starts = np.cumsum([0, *sizes])
    return np.concatenate([starts[j] + np.arange(n) % sizes[j] for j, n in enumerate(counts)])


def _manifest(folder: str) -> dict:
    try:
        with open(os.path.join(folder, f.MANIFEST), encoding="utf-8") as file:
            found = json.load(file)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as e:
        raise UserError(f"{os.path.join(folder, f.MANIFEST)}: cannot be read ({str(e)[:80]})") from None
    return found if isinstance(found, dict) else {}


class Steps(torch.utils.data.Dataset):
    """Batches by step, for torch's DataLoader: workers fetch whole batches, in the order of steps."""

    def __init__(self, shards: Shards):
        self.shards = shards

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        return self.shards.batch(step)


def batches(shards: Shards, start: int, stop: int, pin_memory: bool = False) -> Iterator[dict[str, Tensor]]:
    """Batches of steps start..stop-1, prefetched by `num_workers` processes if there are any."""
    workers = shards.config.num_workers
    loader = torch.utils.data.DataLoader(
        Steps(shards),
        batch_size=None,
        sampler=range(start, stop),
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=shards.config.prefetch_factor if workers else None,
        persistent_workers=bool(workers) and shards.config.persistent_workers,
    )
    try:
        yield from loader
    except UserError as e:  # torch wraps what a worker raises in its own traceback; the last line is the message
        raise UserError(str(e).strip().rsplit("UserError: ", 1)[-1]) from None


def validation(shards: Shards, eval_steps: int | None = None):
    """Every example once, in file order, the last batch as small as it comes; `eval_steps` batches at most."""
    size = shards.config.batch_size
    for step, first in enumerate(range(0, shards.total, size)):
        if eval_steps is not None and step >= eval_steps:
            return
        yield shards.read(range(first, min(first + size, shards.total)))
