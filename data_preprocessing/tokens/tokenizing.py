"""Tokenizers: training, and an encoder that is fast and gives the ids of Hugging Face `tokenizers`."""

import functools
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from modelzoo.config.errors import UserError
from modelzoo.data.tokenizer import parse_tokenizer, vocabulary_size

FIM_TOKENS = ("<fim_prefix>", "<fim_middle>", "<fim_suffix>")
# gigatoken remembers every word it has seen: after this many characters it starts afresh, or memory would grow.
FRESH_AFTER = 200_000_000
MAX_WORD = 1000  # characters; the longest that occur in biomedical prose have a tenth
# What ByteLevel's pattern takes for one word is in one of these.
WORD = re.compile(r"[^\W_]+|(?:[^\w\s]|_)+|\s+")
BLANKS = re.compile(rf"\s{{{MAX_WORD}}}")
# Texts on which a faster encoder must agree before it is used: odd white space, digits, scripts, contractions.
CANARY = (
    "",
    " ",
    "\n\n  x \t",
    "The p-value was <0.05 (n = 1,234); 95% CI: 0.8\u20131.2.",
    "don't DON'T they'll I\u2019ve",
    "a\u00a0b\u2009c",
    "\u03b2-catenin \u00b5g/mL 10\u207b\u2076 H\u2082O",
    "\u4e2d\u6587\u0644\u0639\u0631\u0628\u064a\u0629 \U0001f9ec e\u0301",
    "x" * 300 + " " * 50 + "1" * 40,
    "<|endoftext|> <fim_prefix> [CLS] </s>",
    "\r\nline\r\n  end  ",
    "CamelCase_snake-kebab/slash\\back",
    "\ufb01\ufb02\u2160\u00bd\u0663",
)


def train(texts: Iterable[list[str]], vocab_size: int, special: list[str]) -> str:
    """A byte-level BPE of `vocab_size` entries (special tokens first), as tokenizer.json text.

    Words of over `MAX_WORD` characters are learnt from in pieces, which is reported: merging in a word costs the square
    of its length.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    pieces = Pieces()
    tokenizer.train_from_iterator(map(pieces.cut, texts), trainer)
    if pieces.words:
        what = f"{pieces.words:,} words of over {MAX_WORD:,} characters were learnt from in pieces"
        print(f"note: the tokenizer: {what}", file=sys.stderr, flush=True)
    return tokenizer.to_str()


class Pieces:
    """Texts with long words in pieces: texts of their own, so that nothing is learnt across a cut."""

    def __init__(self):
        self.words = 0  # that were cut

    def cut(self, texts: list[str]) -> list[str]:
        """The same texts, those with words of over `MAX_WORD` characters in pieces."""
        return [piece for text in texts for piece in self._cut(text)]

    def _cut(self, text: str) -> list[str]:
        words = text.split()
        if len(text) <= MAX_WORD or max(map(len, words), default=0) <= MAX_WORD and not BLANKS.search(text):
            return [text]
        pieces, begin = [], 0
        for match in WORD.finditer(text):
            if match.end() - match.start() > MAX_WORD:
                self.words += 1
                for at in range(match.start() + MAX_WORD, match.end(), MAX_WORD):
                    pieces.append(text[begin:at])
                    begin = at
        return [*pieces, text[begin:]]


def token_id(tokenizer, token: str, name: str) -> int:
    """The id of a token that must be there."""
    found = tokenizer.token_to_id(token)
    if found is None:
        raise UserError(f"{name}: has no token {token!r}; name the one it uses (--eos_token), or train a tokenizer")
    return found


@functools.lru_cache(maxsize=1)  # a job's steps use one tokenizer, and parsing it takes a tenth of a second
def parse_once(text: str) -> tuple[Any, int]:
    """A tokenizers.Tokenizer that nobody may change, and what a model needs room for: the largest id + 1."""
    tokenizer = parse_tokenizer(text, "tokenizer.json")
    return tokenizer, vocabulary_size(tokenizer)


class Encoder:
    """Texts to ids, as `tokenizers` gives them. gigatoken does the work where it agrees on CANARY."""

    def __init__(self, text: str, name: str, engine: str = "auto"):
        self.name, self.text, self.characters = name, text, 0
        self.sha256 = hashlib.sha256(text.encode()).hexdigest()
        self.reference, self.size = parse_once(text)
        self.fast = _fast(text, self.reference) if engine in ("auto", "gigatoken") else None
        self.engine = "gigatoken" if self.fast is not None else "tokenizers"
        if engine == "gigatoken" and self.fast is None:
            raise UserError(f"{name}: gigatoken cannot encode with this tokenizer; use --encoder tokenizers")

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts end to end (int32) and offsets [len(texts)+1] (int64); no special token is added."""
        if self.fast is None:
            return encode_reference(self.reference, texts)
        self.characters += sum(map(len, texts))
        if self.characters > FRESH_AFTER:
            self.fast, self.characters = _fast(self.text, self.reference), 0
        return _encode_fast(self.fast, texts)

    def check(self, texts: list[str]) -> None:
        """Compare with the reference on these texts.

        Raises:
            UserError: an id differs.
        """
        if self.fast is None:
            return
        mine, reference = self.encode(texts), encode_reference(self.reference, texts)
        if not (np.array_equal(mine[0], reference[0]) and np.array_equal(mine[1], reference[1])):
            raise UserError(f"{self.name}: gigatoken's ids differ from those of tokenizers; use --encoder tokenizers")


def encode_reference(tokenizer, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The same from Hugging Face `tokenizers`: flat ids (int32) and offsets [len(texts)+1] (int64)."""
    ids = [e.ids for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    offsets = np.zeros(len(ids) + 1, np.int64)
    np.cumsum([len(i) for i in ids], out=offsets[1:])
    flat = np.fromiter((t for i in ids for t in i), np.int32, int(offsets[-1]))
    return flat, offsets


def _fast(text: str, reference):
    """A gigatoken tokenizer, or None where it cannot be had or disagrees."""
    try:
        import gigatoken
    except ImportError:
        return None
    spec = json.loads(text)  # which `tokenizers` has parsed, so it is not nested too deeply
    if spec.get("model", {}).get("type") != "BPE" or spec.get("normalizer"):
        return None
    spec["added_tokens"] = [
        t for t in spec.get("added_tokens") or [] if not t.get("special")
    ]  # so that "<|endoftext|>" in a document is text, as in the reference
    spec["post_processor"] = None
    spec["model"]["dropout"] = None  # as in the reference
    try:
        fast = gigatoken.Tokenizer.from_json(json.dumps(spec))
        mine, theirs = _encode_fast(fast, list(CANARY)), encode_reference(reference, list(CANARY))
    except Exception:  # an unsupported tokenizer: whatever it raises, the reference can do it
        return None
    return fast if np.array_equal(mine[0], theirs[0]) and np.array_equal(mine[1], theirs[1]) else None


def _encode_fast(fast, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """One call a text: a batch would come as an Awkward Array, whose import takes longer than 50,000 abstracts do."""
    encode = fast.backend.encode
    ids = [encode(text) for text in texts]
    offsets = np.zeros(len(ids) + 1, np.int64)
    np.cumsum([len(i) for i in ids], out=offsets[1:])
    return np.concatenate(ids).astype(np.int32, copy=False) if ids else np.empty(0, np.int32), offsets


def batched(texts: Iterable[str], characters: int = 1 << 20) -> Iterator[list[str]]:
    """Lists of texts of about `characters` each."""
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
