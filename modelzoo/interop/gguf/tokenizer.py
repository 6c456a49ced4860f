"""A byte-level BPE tokenizer.json as GGUF holds it: tokens with types, merges, and the name of how words are cut."""

from typing import Annotated, Any, NamedTuple

from pydantic import Field

from modelzoo.config.errors import UserError
from modelzoo.data.tokenizer import END_OF_TEXT, Added, Id, check_vocabulary, read_tokenizer
from modelzoo.reading import parse_json
from modelzoo.records import Record, check_record

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # gguf.TokenType
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
# tokenizer.ggml.pre by (regular expression, whether whole words come before merges): those that llama.cpp has
NAMES = {
    (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", False): "gpt-2",
    (rf"{_SHORT}|{_WORD}|\p{{N}}{{1,3}}|{_REST}", True): "llama-bpe",
    (rf"{_SHORT}|{_WORD}|\p{{N}}|{_REST}", False): "qwen2",
}
GPT2_PATTERN = next(iter(NAMES))[0]  # what ByteLevel itself cuts by


class Words(NamedTuple):
    """A vocabulary in GGUF's form: a token and its type for each row of the model."""

    tokens: list[str]
    types: list[int]
    merges: list[str]
    pre: str  # tokenizer.ggml.pre
    eos: int
    notes: list[str]  # for the user


class _Pattern(Record):
    Regex: str


class _Step(Record):
    """A pre-tokenizer, or a sequence of them; a normalizer."""

    type: str
    add_prefix_space: bool = False
    use_regex: bool = True
    trim_offsets: bool = True
    pattern: _Pattern | None = None
    behavior: str = "Isolated"
    invert: bool = False
    pretokenizers: list[dict[str, Any]] | None = None


class _BPE(Record):
    type: str = "BPE"
    vocab: Annotated[dict[str, Id], Field(min_length=1)]
    merges: list[str | Annotated[list[str], Field(min_length=2, max_length=2)]]
    ignore_merges: bool = False
    byte_fallback: bool = False
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None


class _File(Record):
    model: _BPE
    added_tokens: list[Added] | None = None
    pre_tokenizer: _Step | None = None
    normalizer: _Step | None = None


class _Kind(Record):
    """Of any tokenizer.json: what sort its model is."""

    type: str = "BPE"


class _AnyFile(Record):
    model: _Kind


def read_words(path: str, eos: int | None, rows: int) -> Words:
    """The tokenizer `path` (as `read_tokenizer` takes it) for a model of `rows` rows.

    Args:
        eos: the id that ends a text; default: of the token that is usual.

    Raises:
        UserError: it is no byte-level BPE, has a part that llama.cpp lacks, more tokens than the model, or no end.
    """
    value = parse_json(read_tokenizer(path))
    if (kind := check_record(value, _AnyFile, path, "is no tokenizer.json").model.type) != "BPE":
        raise UserError(f"{path}: is {kind[:40]!a}; GGUF is written of byte-level BPE alone")
    file = check_record(value, _File, path, "is no byte-level BPE that GGUF can hold")
    pre = _name_cut(file, path)
    ids = {**file.model.vocab, **{t.content: t.id for t in file.added_tokens or ()}}
    check_vocabulary(path, max(ids.values()) + 1, rows)
    if eos is None:
        eos = next((ids[t] for t in END_OF_TEXT if t in ids), None)
    if eos is None:
        raise UserError(f"{path}: has no end-of-text token ({', '.join(END_OF_TEXT)}), which GGUF needs")
    by_id = {i: t for t, i in ids.items()}
    added = {t.content: CONTROL if t.special else USER_DEFINED for t in file.added_tokens or ()}
    tokens = [by_id.get(i) or f"[PAD{i}]" for i in range(rows)]
    types = [added.get(by_id[i], NORMAL) if i in by_id else UNUSED for i in range(rows)]
    types[eos] = CONTROL
    merges = [m if isinstance(m, str) else " ".join(part.replace(" ", "Ġ") for part in m) for m in file.model.merges]
    notes = []
    if file.normalizer is not None:
        notes.append("the tokenizer's NFC is left out, llama.cpp has none: give it prompts in NFC")
    return Words(tokens, types, merges, pre, eos, notes)


def _name_cut(file: _File, path: str) -> str:
    """tokenizer.ggml.pre.

    Raises:
        UserError: names the part of the tokenizer that llama.cpp has no counterpart of.
    """
    if file.normalizer is not None and file.normalizer.type != "NFC":
        raise UserError(f"{path}: normalizer: {file.normalizer.type[:40]!a}: llama.cpp has none for BPE")
    model = file.model
    for name in ("byte_fallback", "continuing_subword_prefix", "end_of_word_suffix"):
        if getattr(model, name):
            raise UserError(f"{path}: model.{name}: has no place in GGUF's byte-level BPE")
    step = file.pre_tokenizer
    steps = [] if step is None else [step] if step.pretokenizers is None else [
        check_record(s, _Step, path, "pre_tokenizer: is none that is known") for s in step.pretokenizers
    ]  # fmt: skip
    if not steps or steps[-1].type != "ByteLevel":
        raise UserError(f"{path}: pre_tokenizer: is not ByteLevel; GGUF is written of byte-level BPE alone")
    if any(s.add_prefix_space for s in steps):
        raise UserError(f"{path}: pre_tokenizer.add_prefix_space: true: llama.cpp's BPE adds no space")
    pattern = GPT2_PATTERN if len(steps) == 1 and steps[0].use_regex else None
    if len(steps) == 2 and not steps[1].use_regex and steps[0].type == "Split" and steps[0].pattern is not None:
        isolated = steps[0].behavior == "Isolated" and not steps[0].invert
        pattern = steps[0].pattern.Regex if isolated else None
    found = NAMES.get((pattern, model.ignore_merges)) if pattern is not None else None
    if found is None:
        raise UserError(
            f"{path}: pre_tokenizer: cuts words otherwise than {', '.join(NAMES.values())}; GGUF has no name for it"
        )
    return found
