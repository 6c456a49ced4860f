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

OPEN_FILES = 256  # at once and process: well below the usual limit of 1024 descriptors


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
    if declared is not None and declared != shape[0]:
        raise UserError(f"{path}: says n_examples = {declared} but holds {shape[0]}; make this shard again")
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

    def __init__(
        self,
        parts: list[list[Shard]],
        weights: list[float] | None,
        config: Config,
        vocab_size: int,
        prompt_tokens: int = 0,
    ):
        self.parts, self.config, self.vocab_size, self.prompt_tokens = parts, config, vocab_size, prompt_tokens
        self.files = [shard for part in parts for shard in part]
        self.msl, self.rows = self.files[0].msl, self.files[0].rows
        self.starts = np.cumsum([0] + [s.examples for s in self.files])
        sizes = [sum(s.examples for s in part) for part in parts]
        self.total = sum(sizes)
        self.mixed = _mixture(sizes, weights) if weights else None
        self.epoch = config.num_samples or self.total
        self._open: dict[int, h5py.Dataset] = {}

    @classmethod
    def open(
        cls, config: Config, vocab_size: int, max_positions: int | None = None, prompt_tokens: int = 0
    ) -> "Shards":
        """Find and check all shards of a dataloader section.

        Args:
            prompt_tokens: how many soft-prompt ids follow the vocabulary's; labels never hold them.

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
            raise UserError(
                f"{files[0].path}: use_vsl needs attention_span and position_ids rows; pack with --objective vsl"
            )
        for folder in {os.path.dirname(s.path) for s in files}:
            known = _manifest(folder).get("vocab_size")
            if isinstance(known, int) and known > vocab_size:
                raise UserError(f"{folder}: tokens of a vocabulary of {known}, but model.vocab_size is {vocab_size}")
        return cls(parts, [m.weight for m in mixture] if mixture else None, config, vocab_size, prompt_tokens)

    def __len__(self) -> int:
        """Examples in an epoch."""
        return self.epoch

    def fingerprint(self) -> str:
        """SHA-256 over what decides the order and content of batches: names, sizes, checksums, seed, batch size.

        A shard without a checksum in its folder's manifest (Model Zoo writes none) counts with three of its examples.
        """
        c = self.config
        sums = {folder: _checksums(folder) for folder in {os.path.dirname(s.path) for s in self.files}}
        facts = []
        for i, s in enumerate(self.files):
            folder, name = os.path.split(s.path)
            facts.append((name, s.examples, s.msl, s.rows, sums[folder].get(name) or self._sample(i)))
        parts = [(len(part), m.weight) for part, m in zip(self.parts, c.mixture or (), strict=False)]
        order = [c.batch_size, (c.shuffle_seed or 0) if c.shuffle else None, self.epoch, c.use_vsl, parts]
        return hashlib.sha256(json.dumps([facts, order]).encode()).hexdigest()

    def _sample(self, shard: int) -> str:
        last = self.files[shard].examples - 1
        found = [self._example(shard, i).astype(np.int64).tobytes() for i in (0, last // 2, last)]
        return hashlib.sha256(b"".join(found)).hexdigest()

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
        # int64 on the way: a shard of wider integers must not wrap round into the vocabulary unseen
        out = np.empty((len(indices), self.rows or len(f.ROWS), self.msl), dtype=np.int64)
        for row, index in enumerate(indices):
            shard = int(np.searchsorted(self.starts, index, side="right")) - 1
            out[row] = self._example(shard, int(index - self.starts[shard]))
        ids, labels, known = out[:, :1], out[:, 2:3], self.vocab_size + self.prompt_tokens
        if max(int(ids.max()) - self.prompt_tokens, int(labels.max())) >= self.vocab_size or (
            min(int(ids.min()), int(labels.min())) < 0
        ):
            self._refuse_ids(indices, ids, known, " and its soft-prompt tokens")
            self._refuse_ids(indices, labels, self.vocab_size, " in its labels")
        names = f.VSL_ROWS if self.config.use_vsl else f.ROWS
        if self.config.use_vsl and (out[:, 3:].min() < 0 or out[:, 3:].max() >= self.msl):
            self._refuse_places(indices, out[:, 3:])
        return {name: torch.from_numpy(out[:, i].astype(np.int32)) for i, name in enumerate(names)}

    def _example(self, shard: int, index: int) -> np.ndarray:
        s = self.files[shard]
        try:
            data = self._dataset(shard)
            if s.rows:
                return data[index]
            window = data[index * s.msl : index * s.msl + s.msl + 1]
            return np.stack((window[:-1], np.ones(s.msl, np.int32), window[1:]))
        except (
            OSError,
            KeyError,
            RuntimeError,
            IndexError,
            ValueError,
        ) as e:  # the last two: it shrank since `inspect`
            reason = str(e).splitlines()[0][:80] if str(e) else type(e).__name__
            raise UserError(f"{s.path}: example {index} cannot be read ({reason}); make this shard again") from None

    def _dataset(self, shard: int) -> h5py.Dataset:
        if shard not in self._open:  # opened here, not in __init__: worker processes come by handles of their own
            if len(self._open) >= OPEN_FILES:
                self._open.pop(next(iter(self._open))).file.close()
            self._open[shard] = h5py.File(self.files[shard].path, "r")[f.DATASET]
        return self._open[shard]

    def _refuse_ids(self, indices: Sequence[int], ids: np.ndarray, known: int, where: str) -> None:
        bad = (ids >= known) | (ids < 0)
        if not bad.any():
            return
        row, example = self._first(indices, bad)
        raise UserError(
            f"{example} holds token id {int(ids[row][bad[row]][0])}, outside model.vocab_size {self.vocab_size}"
            + (
                f"{where}; encode the data for this trainer.init.soft_prompt ({self.prompt_tokens} tokens)"
                if self.prompt_tokens
                else "; use the tokenizer's vocabulary size"
            )
        )

    def _refuse_places(self, indices: Sequence[int], rows: np.ndarray) -> None:
        row, where = self._first(indices, bad := (rows >= self.msl) | (rows < 0))
        raise UserError(
            f"{where} holds {int(rows[row][bad[row]][0])} in attention_span or position_ids, outside its {self.msl} "
            "tokens; make this shard again with --objective vsl"
        )

    def _first(self, indices: Sequence[int], bad: np.ndarray) -> tuple[int, str]:
        """The first row of a batch with a bad entry, and the file and example that it came from."""
        row = int(np.argmax(bad.any(axis=(1, 2))))
        shard = int(np.searchsorted(self.starts, indices[row], side="right")) - 1
        return row, f"{self.files[shard].path}: example {indices[row] - self.starts[shard]}"

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


def _checksums(folder: str) -> dict[str, str]:
    """SHA-256 of each shard's tokens, by file name, as preprocessing notes it."""
    shards = _manifest(folder).get("shards", [])
    return {s["file"]: s.get("data_sha256") for s in shards if isinstance(s, dict) and "file" in s}


class Steps(torch.utils.data.Dataset):
    """Batches by step, for torch's DataLoader: workers fetch whole batches, in the order of steps.

    A worker hands an error's text over like a batch: raised there, torch would wrap it in its own traceback.
    """

    def __init__(self, shards: Shards):
        self.shards = shards

    def __getitem__(self, step: int) -> dict[str, Tensor] | str:
        try:
            return self.shards.batch(step)
        except UserError as e:
            return str(e)


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
    for batch in loader:
        if isinstance(batch, str):
            raise UserError(batch)
        yield batch


def validation(shards: Shards, eval_steps: int | None = None):
    """Every example once, in file order, the last batch as small as it comes; `eval_steps` batches at most."""
    size = shards.config.batch_size
    for step, first in enumerate(range(0, shards.total, size)):
        if eval_steps is not None and step >= eval_steps:
            return
        yield shards.read(range(first, min(first + size, shards.total)))
