"""Tokenizers as files: tokenizer.json, or a GPT-2 style vocabulary. No torch."""

import json
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from modelzoo.config.errors import UserError
from modelzoo.data.folder import read_manifest

if TYPE_CHECKING:
    import tokenizers

END_OF_TEXT = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>")


def read_tokenizer(path: str) -> str:
    """A tokenizer.json's text, from such a file or a folder with a tokenizer.json or a GPT-2 style vocabulary."""
    if os.path.isdir(path):
        for vocab, merges in (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")):
            if os.path.exists(os.path.join(path, vocab)) and os.path.exists(os.path.join(path, merges)):
                return _from_bpe(os.path.join(path, vocab), os.path.join(path, merges))
        if not os.path.exists(os.path.join(path, "tokenizer.json")):
            raise UserError(f"{path}: holds neither tokenizer.json nor encoder.json with vocab.bpe")
        path = os.path.join(path, "tokenizer.json")
    try:
        with open(path, encoding="utf-8") as f:
            text = f.read()
        parse_tokenizer(text, path)
        return text
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: tokenizer cannot be read: {getattr(e, 'strerror', None) or e}") from None


def parse_tokenizer(text: str, name: str):
    """A tokenizers.Tokenizer that treats special tokens in documents as plain text: text never becomes control."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as e:  # tokenizers raises bare Exception
        raise UserError(f"{name}: is not a Hugging Face tokenizer.json ({str(e)[:120]})") from None
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _from_bpe(vocab_path: str, merges_path: str) -> str:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    try:
        with open(vocab_path, encoding="utf-8") as f:
            vocab = json.load(f)
        with open(merges_path, encoding="utf-8") as f:
            lines = [line.rstrip("\n") for line in f]
        merges: list[Any] = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    except Exception as e:
        raise UserError(f"{vocab_path}, {merges_path}: not a byte-level BPE vocabulary ({str(e)[:120]})") from None
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<|endoftext|>",) if t in vocab])
    return tokenizer.to_str()


def vocabulary_size(backend) -> int:
    """Rows that a model needs for a tokenizers.Tokenizer: the largest id + 1, which gaps put above the count."""
    return max(backend.get_vocab().values()) + 1


def check_vocabulary(name: str, size: int, vocab_size: int) -> None:
    """Refuse the tokenizer `name` of `size` (its largest id + 1) for a model of `vocab_size` rows; fewer ids fit."""
    if size > vocab_size:
        raise UserError(
            f"{name}: has token ids up to {size - 1}, the model's vocabulary is {vocab_size}; this is not its tokenizer"
        )


class Tokenizer(NamedTuple):
    """A tokenizer with the id that ends a text."""

    backend: "tokenizers.Tokenizer"  # which takes special tokens in texts as plain text
    eos: int
    name: str

    @property
    def size(self) -> int:
        """Rows that a model needs: the largest id + 1."""
        return vocabulary_size(self.backend)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, with no special tokens added."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids, and the characters [from, to) of `text` that each covers."""
        encoding = self.backend.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, special tokens included."""
        return self.backend.decode(ids, skip_special_tokens=False)


def load_tokenizer(path: str, eos: int | None = None) -> Tokenizer:
    """The tokenizer at `path` (tokenizer.json, or a folder as `read_tokenizer` takes).

    Args:
        eos: the end-of-text id; default: that of the folder's manifest.json, else the token that is usual.

    Raises:
        UserError: no tokenizer there, or none of the usual end-of-text tokens in it.
    """
    backend = parse_tokenizer(read_tokenizer(path), path)
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    if eos is None:
        eos = read_manifest(folder).get("eos_id")
    if eos is None:
        eos = next((i for t in END_OF_TEXT if (i := backend.token_to_id(t)) is not None), None)
    if eos is None:
        raise UserError(f"{path}: has no end-of-text token ({', '.join(END_OF_TEXT)})")
    return Tokenizer(backend, eos, path)
