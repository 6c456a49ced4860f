"""HDF5 shards as a map from step to batch: seeded order, O(1) resume, the same whatever the number of workers.

    shards = Shards.open(config, vocab_size=50257)
    batch = shards.batch(step)         # a pure function of (files, seed, step)

An epoch's order is torch.randperm seeded with seed + epoch (Model Zoo's rule). What an epoch leaves over after its last
whole batch opens the next batch, so nothing is dropped and the order does not depend on how the run was cut. Of which
examples an epoch of a mixture consists is `order.mix_datasets`.
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
from modelzoo.config.sections.dataloader import DataLoader as Config
from modelzoo.data import format as f
from modelzoo.data import storage
from modelzoo.data.files import (
    Shard,
    find_shards,
    inspect_shards,
    list_recorded,
    require_agreement,
    require_rows,
    take_stamp,
)
from modelzoo.data.folder import NEGATIVE, open_shard
from modelzoo.data.holding import AT_ONCE, Holding, check_hash
from modelzoo.data.manifest import require_positions, require_vocabulary
from modelzoo.data.mixture import share_epoch
from modelzoo.data.order import draw_permutation, mix_datasets
from modelzoo.reading import MIB, open_regular

OPEN_FILES = 256  # at once and process: well below the usual limit of 1024 descriptors
BY_CONTENT = "content-"  # the fingerprint covers the bytes of shards without a checksum


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
        self.epoch = config.num_samples or self.total
        self.sizes, self.weights = tuple(sizes), tuple(weights or ())
        self.holding = Holding()
        self._open: dict[int, h5py.Dataset] = {}
        self._contents: dict[int, str] = {}  # hashes of `fingerprint`
        self._held: set[int] = set()  # shards that this process held to their hash because of an example of zeros

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
            [inspect_shards(p, msl, recorded) for p, recorded in list_recorded(find_shards(d))]
            for d in ([m.data_dir for m in mixed] if mixed else [config.data_dir or ()])
        ]
        files = [s for part in parts for s in part]
        require_agreement([(s.path, s.rows, s.msl) for s in files])
        require_positions(files[0].path, files[0].msl, max_positions)
        require_rows(files[0].path, files[0].rows, config.use_vsl)
        for folder in {os.path.dirname(s.path) for s in files}:
            require_vocabulary(folder, vocab_size)
        return cls(parts, [m.weight for m in mixed] if mixed else None, config, vocab_size, prompt_tokens)

    def __len__(self) -> int:
        """Examples in an epoch."""
        return self.epoch

    def fingerprint(self, like: str | None = None) -> str:
        """SHA-256 over what decides the order and content of batches: names, sizes, checksums, seed, batch size.

        A shard without a checksum in its folder's manifest (Model Zoo writes none) counts with its file's size and
        bytes: all of them up to `AT_ONCE` for all such shards, else as many, spread evenly.

        Args:
            like: a fingerprint to compare with. If an older version made it, which took three examples of such a shard,
                this one is made like it.
        """
        c = self.config
        bare = [s for s in self.files if s.recorded.data_sha256 is None]
        former = like is not None and not like.startswith(BY_CONTENT)
        share = AT_ONCE / max(1, sum(s.stamp.size for s in bare))
        facts = []
        for i, s in enumerate(self.files):
            content = s.recorded.data_sha256 or (self._sample(i) if former else self._contents.get(i))
            if content is None:
                content = self._contents[i] = sample_file(s.path, share)
            facts.append((os.path.basename(s.path), s.examples, s.msl, s.rows, content))
        parts = [(len(part), m.weight) for part, m in zip(self.parts, c.mixture or (), strict=False)]
        order = [c.batch_size, (c.shuffle_seed or 0) if c.shuffle else None, self.epoch, c.use_vsl, parts]
        if self._is_drawn():  # older versions took the first examples of such a mixture
            order.append(["drawn", c.shuffle_seed or 0])
        digest = hashlib.sha256(json.dumps([facts, order]).encode()).hexdigest()
        return digest if former or not bare else BY_CONTENT + digest

    def _is_drawn(self) -> bool:
        """Whether an epoch is a mixture of another length than the data, or has some examples of a set more often."""
        if not self.weights:
            return False
        taken = share_epoch(self.epoch, self.weights)
        return self.epoch != self.total or any(n % size for n, size in zip(taken, self.sizes, strict=True))

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
        return int(self._mix(epoch)[at]) if self.weights else at % self.total

    def _mix(self, epoch: int) -> np.ndarray:
        return mix_datasets(self.sizes, self.weights, self.epoch, self.config.shuffle_seed or 0, epoch)

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
        what = f"example {index}"
        try:
            data = self._dataset(shard)
        except UserError as e:
            reason, _, advice = str(e).removeprefix(f"{s.path}: ").partition("; ")
            advice = advice or "make this shard again"
            raise UserError(f"{s.path}: {what} cannot be read ({reason}); {advice}") from None
        first, count = (index, 1) if s.rows else (index * s.msl, s.msl + 1)
        found = storage.read_values(s.path, data, first, count, what)
        if not s.rows:
            return np.stack((found[:-1], np.ones(s.msl, np.int32), found[1:]))
        if not found[0, : len(f.ROWS)].any():
            self._check_zeros(shard, index)
        return found[0]

    def _check_zeros(self, shard: int, index: int) -> None:
        """Refuse an example that is zero throughout, mask included, unless its shard is what its manifest records."""
        s = self.files[shard]
        if not s.recorded.has_hash:
            raise UserError(
                f"{s.path}: example {index} is zero throughout (tokens, loss mask and labels), as a damaged disk or "
                "index leaves it; make this shard again"
            )
        if shard not in self._held:
            check_hash(s.path, s.recorded)
            self._held.add(shard)

    def _dataset(self, shard: int) -> h5py.Dataset:
        if shard not in self._open:  # opened here, not in __init__: worker processes come by handles of their own
            if len(self._open) >= OPEN_FILES:
                self._open.pop(next(iter(self._open))).file.close()
            s = self.files[shard]
            same = take_stamp(s.path) == s.stamp
            data = open_shard(s.path, whole=not same)[1]
            if not same:
                self._check_changed(s, data.shape)
            self._open[shard] = data
        return self._open[shard]

    def _check_changed(self, s: Shard, shape: tuple[int, ...]) -> None:
        """Refuse a shard that was written to since `inspect_shards`, unless it is still what its manifest records."""
        if len(shape) == 3 and shape != (s.examples, s.rows, s.msl):
            raise UserError(f"{s.path}: is another than at the start; restore it")
        if not s.recorded.has_hash:
            raise UserError(f"{s.path}: was written to since the start; restore it, or start again")
        check_hash(s.path, s.recorded)

    def _refuse_ids(self, indices: Sequence[int], ids: np.ndarray, known: int, where: str) -> None:
        bad = (ids >= known) | (ids < 0)
        if not bad.any():
            return
        row, example = self._first(indices, bad)
        found = int(ids[row][bad[row]][0])
        hint = "use the tokenizer's vocabulary size"
        if found < 0:
            hint = NEGATIVE
        elif self.prompt_tokens:
            hint = f"tokenize the data for this trainer.init.soft_prompt ({self.prompt_tokens} tokens)"
        raise UserError(
            f"{example} holds token id {found}, outside model.vocab_size {self.vocab_size}"
            f"{where if self.prompt_tokens else ''}; {hint}"
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
        return {**self.__dict__, "_open": {}, "holding": Holding()}  # open files and threads stay in their process


def sample_file(path: str, share: float) -> str:
    """SHA-256 of a file's size and of `share` of its bytes: all from 1 on, else blocks of 1 MiB spread evenly.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            blocks = -(-size // MIB)
            taken = range(blocks) if share >= 1 else sorted({0, blocks - 1, *np.linspace(
                0, blocks - 1, max(2, int(blocks * share))).astype(int).tolist()})  # fmt: skip
            digest = hashlib.sha256(str(size).encode())
            for block in taken:
                file.seek(block * MIB)
                digest.update(file.read(MIB))
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from None
    return digest.hexdigest()
