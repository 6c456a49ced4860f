"""HDF5 shards as a map from step to batch: seeded order, O(1) resume, the same whatever the number of workers.

    shards = Shards.open(config, vocab_size=50257)
    batch = shards.batch(step)         # a pure function of (files, seed, step)

An epoch's order is torch.randperm seeded with seed + epoch (Model Zoo's rule). What an epoch leaves over after its last
whole batch opens the next batch, so nothing is dropped and the order does not depend on how the run was cut.
"""

import hashlib
import json
import os
from collections.abc import Sequence

import h5py
import numpy as np
import torch
from torch import Tensor

from modelzoo.config.errors import UserError
from modelzoo.config.trainer import DataLoader as Config
from modelzoo.data import format as f
from modelzoo.data.files import Shard, find_shards, inspect_shards, read_checksums
from modelzoo.data.folder import open_shard, read_manifest
from modelzoo.data.order import draw_permutation, mix_datasets

OPEN_FILES = 256  # at once and process: well below the usual limit of 1024 descriptors


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
        self.mixed = mix_datasets(sizes, weights) if weights else None
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
        msl, mixed = config.max_sequence_length, config.mixture
        parts = [
            [inspect_shards(p, msl) for p in find_shards(d)]
            for d in ([m.data_dir for m in mixed] if mixed else [config.data_dir or ()])
        ]
        files = [s for part in parts for s in part]
        for s in files[1:]:
            if (s.msl, s.rows) != (files[0].msl, files[0].rows):
                raise UserError(
                    f"{s.path}: [{s.rows}, {s.msl}] but {files[0].path}: [{files[0].rows}, {files[0].msl}]; "
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
            known = read_manifest(folder).get("vocab_size")
            if isinstance(known, int) and known > vocab_size:
                raise UserError(f"{folder}: tokens of a vocabulary of {known}, but model.vocab_size is {vocab_size}")
        return cls(parts, [m.weight for m in mixed] if mixed else None, config, vocab_size, prompt_tokens)

    def __len__(self) -> int:
        """Examples in an epoch."""
        return self.epoch

    def fingerprint(self) -> str:
        """SHA-256 over what decides the order and content of batches: names, sizes, checksums, seed, batch size.

        A shard without a checksum in its folder's manifest (Model Zoo writes none) counts with three of its examples.
        """
        c = self.config
        sums = {folder: read_checksums(folder) for folder in {os.path.dirname(s.path) for s in self.files}}
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
            at = int(draw_permutation(self.epoch, (self.config.shuffle_seed or 0) + epoch)[at])
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
        except UserError as e:  # of `open_shard`
            reason = str(e).removeprefix(f"{s.path}: ").partition(";")[0]
        except (
            OSError,
            KeyError,
            RuntimeError,
            IndexError,
            ValueError,
        ) as e:  # the last two: it shrank since `inspect`
            reason = str(e).splitlines()[0][:80] if str(e) else type(e).__name__
        raise UserError(f"{s.path}: example {index} cannot be read ({reason}); make this shard again")

    def _dataset(self, shard: int) -> h5py.Dataset:
        if shard not in self._open:  # opened here, not in __init__: worker processes come by handles of their own
            if len(self._open) >= OPEN_FILES:
                self._open.pop(next(iter(self._open))).file.close()
            self._open[shard] = open_shard(self.files[shard].path)[1]
        return self._open[shard]

    def _refuse_ids(self, indices: Sequence[int], ids: np.ndarray, known: int, where: str) -> None:
        bad = (ids >= known) | (ids < 0)
        if not bad.any():
            return
        row, example = self._first(indices, bad)
        raise UserError(
            f"{example} holds token id {int(ids[row][bad[row]][0])}, outside model.vocab_size {self.vocab_size}"
            + (
                f"{where}; tokenize the data for this trainer.init.soft_prompt ({self.prompt_tokens} tokens)"
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
