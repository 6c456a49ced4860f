"""Tokenizers as files: tokenizer.json, or what is converted to one. No torch."""

import codecs
import functools
import json
import os
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from modelzoo.config.errors import UserError
from modelzoo.data import format as f
from modelzoo.data import hub
from modelzoo.data import tokenizer_kinds as kinds
from modelzoo.data.folder import read_manifest
from modelzoo.data.vocabularies import Id, Model, convert_folder, convert_sentencepiece, parse_words, read_words
from modelzoo.reading import exists, parse_json, read_bytes
from modelzoo.records import Record, check_record

if TYPE_CHECKING:
    import tokenizers

END_OF_TEXT = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>")
VERSION = "1.0"  # of the format of tokenizer.json, the only one there is


class Added(Record):
    """A token that is found in text before the model is asked."""

    id: Id
    content: str
    special: bool = False


class TokenizerFile(Record):
    """What a Hugging Face tokenizer.json must hold."""

    model: Model
    added_tokens: list[Added] | None = None
    version: str = VERSION

    def check_ids(self, path: str) -> None:
        """The same of a whole file; an added token may have the id that its own text has in the vocabulary.

        Raises:
            UserError: names both tokens.
        """
        self.model.check_ids(path)
        added = {t.content: t.id for t in self.added_tokens or ()}
        Model(vocab=added).check_ids(path)


def read_tokenizer(path: str) -> str:
    """A tokenizer.json's text, from such a file or a folder with one, or of what is converted to one.

    Converted are vocabularies with merges (GPT-2's, BioGPT's) and SentencePiece models. BPE dropout, with which a text
    has other ids each time, is switched off, and reported.

    Raises:
        UserError: no tokenizer that is read here, of another kind (with what converts it), or of a newer version.
    """
    if not exists(path):
        raise UserError(hub.explain_missing(path, "a tokenizer.json, or a folder with a tokenizer", hub.TOKENIZER))
    if os.path.isdir(path):
        if not exists(os.path.join(path, f.TOKENIZER)):
            if (found := convert_folder(path)) is not None:
                return found.to_str()
            missing = f"{path}: holds neither tokenizer.json nor encoder.json with vocab.bpe (or another tokenizer)"
            raise UserError(kinds.explain_folder(path) or missing)
        path = os.path.join(path, f.TOKENIZER)
    elif other := kinds.explain_file(path):
        raise UserError(other)
    elif path.endswith(".model"):
        return convert_sentencepiece(path).to_str()
    text = read_words(path)
    found = parse_words(text, path)
    file = check_record(found, TokenizerFile, path, "is not a Hugging Face tokenizer.json")
    if file.version != VERSION:
        raise UserError(f"{path}: version: {file.version[:20]!r}, where {VERSION} is read; {_newer()}")
    file.check_ids(path)
    text = _switch_off_dropout(found, path) or text
    if not parse_tokenizer(text, path).get_vocab():
        raise UserError(f"{path}: has an empty vocabulary")
    return text


def read_clean(path: str) -> bytes:
    """A tokenizer.json as it is copied: without a byte-order mark and BPE dropout. What is no JSON stays what it is.

    Raises:
        OSError: it cannot be read.
    """
    data = read_bytes(path).removeprefix(codecs.BOM_UTF8)
    try:
        found = parse_json(data) if b'"dropout"' in data else None
    except ValueError:
        return data
    text = _switch_off_dropout(found, path)
    return data if text is None else text.encode()


def _switch_off_dropout(found: Any, path: str) -> str | None:
    """The text of a parsed tokenizer.json without its BPE dropout, which is reported; None where it has none."""
    model = found.get("model") if isinstance(found, dict) else None
    if not isinstance(model, dict) or not isinstance(dropout := model.get("dropout"), int | float) or not dropout:
        return None
    _report_dropout(path, dropout)
    model["dropout"] = None
    return json.dumps(found, ensure_ascii=False, indent=2)


@functools.cache  # a file that is read several times is reported once
def _report_dropout(path: str, dropout: float) -> None:
    text = f"its BPE dropout of {dropout:g} is switched off: a text has the same ids each time"
    print(f"note       {path}: {text}", file=sys.stderr, flush=True)


def _newer() -> str:
    import tokenizers

    return f"if a newer version wrote it, pip install tokenizers --upgrade (this is {tokenizers.__version__})"


def parse_tokenizer(text: str, name: str):
    """A tokenizers.Tokenizer that treats special tokens in documents as plain text: text never becomes control."""
    from tokenizers import Tokenizer

    with kinds.refusing(f"{name}: is not a Hugging Face tokenizer.json", f"; {_newer()}"):
        tokenizer = Tokenizer.from_str(text)
    if getattr(tokenizer.model, "dropout", None):
        tokenizer.model.dropout = None  # else the same text has other ids each time
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def vocabulary_size(backend) -> int:
    """Rows that a model needs for a tokenizers.Tokenizer: the largest id + 1, which gaps put above the count."""
    return max(backend.get_vocab().values()) + 1


def compare_vocabularies(there: "tokenizers.Tokenizer", here: "tokenizers.Tokenizer") -> str | None:
    """The first token that has another id in `here` than in `there`, in words; None where they are one vocabulary."""
    theirs, ours = there.get_vocab(), here.get_vocab()
    if theirs == ours:
        return None
    odd = next((t for t, i in sorted(theirs.items(), key=lambda item: item[1]) if ours.get(t) != i), None)
    return "fewer tokens" if odd is None else f"{odd[:40]!a} is {theirs[odd]} there, {ours.get(odd, 'none')} here"


def check_vocabulary(name: str, size: int, vocab_size: int) -> None:
    """Refuse the tokenizer `name` of `size` (its largest id + 1) for a model of `vocab_size` rows; fewer ids fit."""
    if size > vocab_size:
        raise UserError(
            f"{name}: has token ids up to {size - 1}, the model's vocabulary is {vocab_size}; this is not its tokenizer"
        )


class Tokenizer(NamedTuple):
    """A tokenizer with the id that ends a text.

    Attributes:
        bos: the token in front of each text that the model reads; None: texts begin with their own first token.
    """

    backend: "tokenizers.Tokenizer"  # which takes special tokens in texts as plain text
    eos: int
    name: str
    bos: int | None = None

    @property
    def size(self) -> int:
        """Rows that a model needs: the largest id + 1."""
        return vocabulary_size(self.backend)

    @property
    def prefix(self) -> list[int]:
        """What comes before the ids of a text: `bos`, or nothing."""
        return [] if self.bos is None else [self.bos]

    @property
    def first(self) -> int:
        """What a text without tokens is predicted behind: `bos`, or the end of another text."""
        return self.eos if self.bos is None else self.bos

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


def find_end_of_text(backend: "tokenizers.Tokenizer") -> int | None:
    """The id of the token that usually ends a text; None where the tokenizer has none of these."""
    return next((i for t in END_OF_TEXT if (i := backend.token_to_id(t)) is not None), None)


def load_tokenizer(path: str, eos: int | None = None, bos: int | None = None) -> Tokenizer:
    """The tokenizer at `path` (tokenizer.json, or a folder as `read_tokenizer` takes).

    Args:
        eos: the end-of-text id; default: that of the folder's manifest.json, else the token that is usual.
        bos: `bos_token_id` of the model that reads its ids.

    Raises:
        UserError: no tokenizer there, or none of the usual end-of-text tokens in it.
    """
    backend = parse_tokenizer(read_tokenizer(path), path)
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    if eos is None:
        eos = read_manifest(folder).get("eos_id")
    if eos is None:
        eos = find_end_of_text(backend)
    if eos is not None and eos >= vocabulary_size(backend):
        raise UserError(f"{path}: has ids below {vocabulary_size(backend)}, the end-of-text id is {eos}")
    if eos is None:
        raise UserError(f"{path}: has no end-of-text token ({', '.join(END_OF_TEXT)})")
    return Tokenizer(backend, eos, path, bos)
