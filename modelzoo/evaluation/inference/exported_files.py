"""The files of a Hugging Face model's folder: which hold its tensors, and whether they hold what config.json asks."""

import os
from typing import Annotated, Any

from pydantic import Field

from modelzoo.config.errors import UserError
from modelzoo.reading import exists
from modelzoo.records import Record, check_record, is_inside, read_record

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")  # names of files that could run code
Size = Annotated[int, Field(gt=0, le=2**24)] | None
_LAYERS, _WIDTHS = ("n_layer", "num_hidden_layers", "n_layers", "num_layers"), ("n_embd", "hidden_size", "d_model")


def is_exported(path: str) -> bool:
    """Whether `path` is a Hugging Face model folder."""
    return os.path.isfile(os.path.join(path, "config.json"))


class _Sizes(Record):
    """Sizes in a config.json, by the names that architectures have for them."""

    n_layer: Annotated[int, Field(gt=0, le=2**12)] | None = None
    num_hidden_layers: Annotated[int, Field(gt=0, le=2**12)] | None = None
    n_layers: Annotated[int, Field(gt=0, le=2**12)] | None = None
    num_layers: Annotated[int, Field(gt=0, le=2**12)] | None = None
    n_embd: Size = None
    hidden_size: Size = None
    d_model: Size = None
    n_head: Size = None
    n_heads: Size = None
    num_attention_heads: Size = None
    num_key_value_heads: Size = None
    head_dim: Size = None
    n_inner: Size = None
    intermediate_size: Size = None
    vocab_size: Size = None
    n_positions: Size = None
    max_position_embeddings: Size = None
    max_seq_len: Size = None


class _Index(Record):
    weight_map: dict[str, str]


def read_index(folder: str) -> dict[str, str] | None:
    """Which file holds which tensor, where a folder has several; None where it has `model.safetensors`, or no index.

    Raises:
        UserError: the index is damaged, or names a file elsewhere.
    """
    path = os.path.join(folder, "model.safetensors.index.json")
    if exists(os.path.join(folder, "model.safetensors")) or not exists(path):
        return None  # as transformers chooses where both are there
    found = read_record(path, _Index, "missing", "is not an index of safetensors files").weight_map
    for name in found.values():
        if not is_inside(name) or not name.endswith(".safetensors"):
            raise UserError(f"{path}: weight_map: {name[:80]!a} is no safetensors file of this folder")
    return found


def count_bytes(path: str) -> int:
    """Bytes of the folder's safetensors files.

    Raises:
        UserError: there are none; what is pickled is named.
    """
    names = [n for n in sorted(os.listdir(path)) if n.endswith(".safetensors")]
    if not names:
        pickled = next((n for n in sorted(os.listdir(path)) if n.endswith(PICKLED)), None)
        why = f"; {pickled} is pickled and could run code, so it is not loaded" if pickled else ""
        raise UserError(f"{path}: holds no safetensors{why} (model.save_pretrained writes them)")
    return sum(os.path.getsize(os.path.join(path, n)) for n in names if os.path.isfile(os.path.join(path, n)))


def check_sizes(file: str, config: Any, stored: int) -> None:
    """Refuse a config.json whose sizes are none, or ask for more weights than the folder's files can hold.

    Raises:
        UserError: names the key.
    """
    if not isinstance(config, dict):
        raise UserError(f"{file}: is not the config of a model")
    sizes = check_record(config, _Sizes, file, "is no size of a model")
    layers, width, words = (
        next(((k, v) for k in names if (v := getattr(sizes, k)) is not None), (names[0], 1))
        for names in (_LAYERS, _WIDTHS, ("vocab_size",))
    )
    most = 8 * max(stored, 1)  # numbers, at one bit each
    places = ("n_positions", sizes.n_positions or 1)
    for key, rows in (words, layers, places):
        needs = rows * width[1]
        if needs > most:
            raise UserError(f"{file}: {key}: asks for more weights than its files hold ({stored:,} bytes)")
