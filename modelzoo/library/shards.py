"""A folder of HDF5 shards in a caller's own program: its examples as NumPy arrays, with all of training's checks."""

import functools
import os
from collections.abc import Sequence
from typing import Any, overload

import numpy as np

from modelzoo.config.errors import UserError
from modelzoo.config.sections.dataloader import DataLoader
from modelzoo.data import format as f
from modelzoo.data.folder import read_manifest
from modelzoo.data.hdf5 import Shards
from modelzoo.data.tokenizer import Tokenizer, load_tokenizer
from modelzoo.data.tokenizer_files import tokenizer_in

Arrays = dict[str, np.ndarray]


def shards(folder: str | os.PathLike[str], *, msl: int | None = None) -> "ShardFolder":
    """The examples of a folder of shards, or of one shard, in the order of their files.

    Args:
        msl: tokens of an example, for a corpus of plain tokens, which is cut into such; else it is the shards' own.

    Raises:
        UserError: there is no shard, or one that training would refuse.
    """
    if not isinstance(folder, str | os.PathLike):
        raise UserError(f"folder: takes a path, got {type(folder).__name__}")
    if msl is not None and (type(msl) is not int or not 0 < msl <= f.MAX_MSL):
        raise UserError(f"msl: takes a number of tokens up to {f.MAX_MSL:,}, got {msl!r:.40}")
    path = os.fspath(folder)
    try:
        return ShardFolder(path, msl)
    except UserError as e:
        e.args = (str(e).replace("max_sequence_length", "msl"),)
        raise


class ShardFolder(Sequence[Arrays]):
    """Examples by number, each a dict of int32 arrays [msl]; a slice is one of [n, msl]. Made by `shards`.

    The arrays are `input_ids`, `attention_mask` (Model Zoo's name for the loss mask: 1 counts), `labels`, and, where
    documents do not see each other (VSL), `attention_span` and `position_ids`.

    Attributes:
        path: the folder. files: paths of the shards.
        msl: tokens of an example.
        metadata: the folder's manifest.json; empty where there is none.
        vocab_size: of the tokenizer, where the manifest has it.
    """

    def __init__(self, path: str, msl: int | None):
        own = path if os.path.isdir(path) else os.path.dirname(path)
        self.path = path
        config = DataLoader(data_dir=(path,), batch_size=1, max_sequence_length=msl)
        found = Shards.open(config, f.MAX_ID + 1)
        self.metadata: dict[str, Any] = read_manifest(own)
        self.vocab_size: int | None = self.metadata.get("vocab_size")
        rows = found.rows == len(f.VSL_ROWS)
        config = config.model_copy(update={"use_vsl": rows})
        self._shards = Shards(found.parts, None, config, self.vocab_size or f.MAX_ID + 1)
        self.files, self.msl, self._folder = [s.path for s in found.files], found.msl, own

    def __len__(self) -> int:
        return len(self._shards)

    def __repr__(self) -> str:
        return f"<{len(self):,} examples of {self.msl} tokens in {len(self.files)} shards of {self.path}>"

    @overload
    def __getitem__(self, index: int) -> Arrays: ...

    @overload
    def __getitem__(self, index: slice) -> Arrays: ...

    def __getitem__(self, index: int | slice) -> Arrays:  # pyright: ignore[reportIncompatibleMethodOverride]  stacked
        """An example, or a slice of them.

        Raises:
            IndexError: there is no such example.
            UserError: it cannot be read, or holds ids outside of the vocabulary.
        """
        if isinstance(index, slice):
            chosen = range(*index.indices(len(self)))
            if not chosen:
                return {name: np.empty((0, self.msl), np.int32) for name in self.rows}
            return {name: x.numpy() for name, x in self._shards.read(chosen).items()}
        at = range(len(self))[index]
        return {name: x[0].numpy() for name, x in self._shards.read([at]).items()}

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of an example's arrays."""
        return f.VSL_ROWS if self._shards.config.use_vsl else f.ROWS

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer next to the shards, or in the folder above.

        Raises:
            UserError: there is none.
        """
        own = os.path.abspath(self._folder)
        return load_tokenizer(tokenizer_in([own, os.path.dirname(own)]) or self._folder, self.metadata.get("eos_id"))

    def documents(self, index: int) -> list[np.ndarray]:
        """The documents of an example, or their parts: its ids between ends of text, without what is padding.

        Raises:
            UserError: neither manifest nor tokenizer says which id ends a text.
        """
        found = self[index]
        eos = self.metadata.get("eos_id")
        eos = self.tokenizer.eos if eos is None else eos
        ids = np.append(found["input_ids"], found["labels"][-1:])
        last = np.flatnonzero(found["attention_mask"])
        ids = ids[: last[-1] + 2 if len(last) else 0]
        pieces = np.split(ids, np.flatnonzero(ids == eos))
        return [x for piece in pieces if len(x := piece[piece != eos])]

    def text(self, index: int) -> str:
        """An example's tokens as text, ends of text included.

        Raises:
            UserError: there is no tokenizer next to the shards.
        """
        return self.tokenizer.decode(self[index]["input_ids"].tolist())
