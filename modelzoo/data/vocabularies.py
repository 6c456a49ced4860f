"""Tokenizers that are converted to a tokenizer.json: vocabularies with merges, BioGPT's, SentencePiece. No torch."""

import functools
import os
import re
import sys
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from modelzoo.config.errors import UserError
from modelzoo.data import format as f
from modelzoo.data import tokenizer_kinds as kinds
from modelzoo.reading import MIB, exists, parse_json, read_bytes
from modelzoo.records import Record, check_record, read_record

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_BYTES = 256 * MIB  # of a tokenizer.json; the largest known have a tenth of it
MERGES_VERSION = (0, 2)  # of merges.txt
Id = Annotated[int, Field(ge=0, le=f.MAX_ID)]
GPT2_CLASSES = ("GPT2", "Roberta", "Bart", "OPT", "CodeGen", "GPTNeo", "BioGpt", "PreTrained", "Tokenizers")


class Model(Record):
    """The `model` of a tokenizer.json: a vocabulary of ids by token, or, Unigram's, of tokens with scores in order."""

    vocab: dict[str, Id] | list[Any]
    merges: list[str | list[str]] | None = None
    dropout: float | None = None  # BPE's: the share of merges that is left out, other ones each time

    def check_ids(self, path: str) -> None:
        """Refuse two tokens of one id: text would not come back from it.

        Raises:
            UserError: names both tokens.
        """
        if isinstance(self.vocab, dict) and len(set(self.vocab.values())) < len(self.vocab):
            seen: dict[int, str] = {}
            for token, number in self.vocab.items():
                if number in seen:
                    raise UserError(f"{path}: vocab: {seen[number]!a} and {token!a} have the same id {number}")
                seen[number] = token


class _Later(Record):
    tokens: dict[str, Id]


class _Class(Record):
    """What is read of tokenizer_config.json."""

    tokenizer_class: str | None = None


def convert_folder(folder: str) -> "Tokenizer | None":
    """The tokenizer of a folder without a tokenizer.json; None where none is known.

    Raises:
        UserError: it is damaged, of a kind that is not read, or needs a package.
    """
    for vocab, merges in kinds.PAIRS:
        if all(exists(os.path.join(folder, n)) for n in (vocab, merges)):
            return _add_later(_read_pair(os.path.join(folder, vocab), os.path.join(folder, merges)), folder)
    if all(exists(os.path.join(folder, n)) for n in kinds.FAIRSEQ):
        return _read_fairseq(*(os.path.join(folder, n) for n in kinds.FAIRSEQ))
    if exists(os.path.join(folder, kinds.PIECES)):
        return _add_later(convert_sentencepiece(os.path.join(folder, kinds.PIECES)), folder)
    return None


def convert_sentencepiece(path: str) -> "Tokenizer":
    """The tokenizer of a SentencePiece model, which is reported."""
    from modelzoo.data import sentence_pieces

    with kinds.refusing(f"{path}: is no SentencePiece model that a tokenizer.json can be made of"):
        found = sentence_pieces.make_tokenizer(path)
    _report(path, "a SentencePiece model, read as a tokenizer.json that gives the same ids")
    return found


def read_words(path: str) -> str:
    """The text of a tokenizer's file.

    Raises:
        UserError: it cannot be read, or is no text.
    """
    try:
        return read_bytes(path, MAX_BYTES).decode("utf-8-sig")
    except OSError as e:
        raise UserError(f"{path}: tokenizer cannot be read: {e.strerror}") from None
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: tokenizer cannot be read: is not UTF-8 text (byte {e.start})") from None


def _list_lines(path: str) -> list[str]:
    """The lines of a tokenizer's file: Unicode's own line breaks are pieces of a vocabulary, and end none."""
    return [line.removesuffix("\r") for line in read_words(path).split("\n")]


def parse_words(text: str, path: str) -> Any:
    """The JSON of a tokenizer's file.

    Raises:
        UserError: it is none.
    """
    try:
        return parse_json(text)
    except ValueError as e:
        raise UserError(f"{path}: is not a Hugging Face tokenizer.json ({' '.join(str(e).split())[:120]})") from None


@functools.cache  # a file that is read several times is reported once
def _report(path: str, text: str) -> None:
    print(f"note       {path}: {text}", file=sys.stderr, flush=True)


def _read_vocabulary(path: str) -> dict[str, int]:
    vocab = parse_words(read_words(path), path)
    found = check_record({"vocab": vocab}, Model, path, "is not a byte-level BPE vocabulary")
    found.check_ids(path)
    assert isinstance(vocab, dict)
    return vocab


def _read_pair(vocab_path: str, merges_path: str) -> "Tokenizer":
    vocab = _read_vocabulary(vocab_path)
    lines = _list_lines(merges_path)
    version = re.match(r"#version: *(\d{1,9})\.(\d{1,9})", lines[0], re.ASCII)
    if version and (int(version[1]), int(version[2])) > MERGES_VERSION:
        raise UserError(f"{merges_path}:1: {version[0][1:]}, where up to {'.'.join(map(str, MERGES_VERSION))} is read")
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    if kinds.has_word_ends(vocab) and [vocab.get(t) for t in ("<s>", "<pad>", "</s>", "<unk>")] == [0, 1, 2, 3]:
        return _make_moses(vocab, merges, vocab_path)
    if other := kinds.explain_vocabulary(vocab_path, vocab):
        raise UserError(other)
    _check_class(os.path.dirname(vocab_path))
    _note_unmade(vocab, merges, merges_path)
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    with kinds.refusing(f"{vocab_path}, {merges_path}: not a byte-level BPE vocabulary"):
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))  # type: ignore[arg-type] tokenizers checks pairs
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<|endoftext|>",) if t in vocab])
    return tokenizer


def _note_unmade(vocab: dict[str, int], merges: list[tuple[str, ...]], path: str) -> None:
    """Report pieces that no merge makes, as of a file that is cut short: no text ever has their ids."""
    made = {"".join(pair) for pair in merges}
    unmade = [t for t in vocab if len(t) > 1 and t not in made and not (t[0] == "<" and t[-1] == ">")]
    if unmade:
        count = f"{len(unmade):,} pieces of its vocabulary of {len(vocab):,}"
        _report(path, f"no merge makes {count}, {unmade[0]!a} first, so no text has their ids; is the file whole?")


def _check_class(folder: str) -> None:
    """Refuse a vocabulary of a class that splits text by other rules than GPT-2's, which its files do not hold."""
    path = os.path.join(folder, "tokenizer_config.json")
    if not exists(path):
        return
    kind = read_record(path, _Class, "missing", "is no tokenizer's config").tokenizer_class
    if kind is not None and not kind.startswith(GPT2_CLASSES):
        raise UserError(f"{path}: tokenizer_class: {kind[:40]!r} {kinds.OTHER_RULES.format(folder=folder)}")


def _read_fairseq(dictionary: str, codes: str) -> "Tokenizer":
    """BioGPT's files as its authors released them: pieces end in @@ within a word there."""
    pieces = [line.rpartition(" ")[0] for line in _list_lines(dictionary) if line]
    names = [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        *(p.removesuffix("@@") if p.endswith("@@") else f"{p}</w>" for p in pieces),
    ]
    vocab = {name: i for i, name in enumerate(names)}
    if len(vocab) < len(names):
        raise UserError(f"{dictionary}: holds a piece twice")
    merges = [tuple(line.split(" ")) for line in _list_lines(codes) if line and line[:1] != "#"]
    return _make_moses(vocab, merges, dictionary)


def _make_moses(vocab: dict[str, int], lines: list[tuple[str, ...]], path: str) -> "Tokenizer":
    from modelzoo.data import moses

    if bad := next((line for line in lines if len(line) < 2), None):
        raise UserError(f"{path}: its merges have a line that is no pair: {' '.join(bad)[:40]!a}")
    with kinds.refusing(f"{path}: is no vocabulary of BioGPT with its merges"):
        found = moses.make_tokenizer(vocab, [(line[0], line[1]) for line in lines], path)
    _report(
        path,
        "BioGPT's BPE after Moses' rules, read as a tokenizer.json: the same ids, but where apostrophes or commas "
        "follow each other; text comes back with Moses' spaces",
    )
    return found


def _add_later(tokenizer: "Tokenizer", folder: str) -> "Tokenizer":
    """With the tokens of added_tokens.json, where the folder has one.

    Raises:
        UserError: their ids do not follow those of the vocabulary.
    """
    path = os.path.join(folder, "added_tokens.json")
    if not exists(path):
        return tokenizer
    from tokenizers import AddedToken

    tokens = check_record({"tokens": parse_words(read_words(path), path)}, _Later, path, "is no list of tokens").tokens
    for token, number in sorted(tokens.items(), key=lambda t: t[1]):
        if tokenizer.token_to_id(token) is None:
            tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        if tokenizer.token_to_id(token) != number:
            raise UserError(f"{path}: {token[:40]!a} has the id {number}, where {tokenizer.token_to_id(token)} is next")
    return tokenizer
