"""The token in front of each text (BOS), which a tokenizer's files ask for: found, and written. No torch."""

import json
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from modelzoo.config.errors import UserError
from modelzoo.data import format as f
from modelzoo.data import tokenizer_kinds as kinds
from modelzoo.data.tokenizer import Tokenizer, load_tokenizer, parse_tokenizer
from modelzoo.reading import exists, parse_json
from modelzoo.records import Record, read_record

if TYPE_CHECKING:
    import tokenizers

CONFIG = "tokenizer_config.json"
ADDING = ("TemplateProcessing", "BertProcessing", "RobertaProcessing")  # post-processors that add tokens
END_OF_WORD = "</w>"  # of BioGPT's pieces


class _Token(Record):
    content: str


class _Config(Record):
    """What is read of tokenizer_config.json."""

    add_bos_token: bool | None = None
    bos_token: str | _Token | None = None

    @property
    def bos(self) -> str:
        return self.bos_token.content if isinstance(self.bos_token, _Token) else self.bos_token or "<s>"


class Found(NamedTuple):
    """The id of the token in front of each text, None where there is none; and lines about what else is added."""

    id: int | None
    notes: list[str]


def load_with_bos(path: str) -> Tokenizer:
    """The tokenizer of a Hugging Face folder, with the token that transformers puts in front of a text by its files.

    Raises:
        UserError: of `load_tokenizer`, or its files name no such token.
    """
    words = load_tokenizer(path)
    return words._replace(bos=find_bos(path, words.backend).id)


def find_bos(path: str, backend: "tokenizers.Tokenizer") -> Found:
    """The token that transformers puts in front of each text by a tokenizer's files.

    The post-processor of tokenizer.json says so (transformers 5 reads no `add_bos_token` next to one). Where there is
    none, it is the class that reads such files: BioGPT's puts </s> in front, Llama's of a SentencePiece model its
    `bos_token`, unless tokenizer_config.json has `add_bos_token: false`.

    Args:
        path: a tokenizer.json, or the folder of a tokenizer. backend: what was read there.

    Raises:
        UserError: tokenizer_config.json is damaged.
    """
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    pieces = os.path.join(folder, kinds.PIECES) if os.path.isdir(path) else path
    if os.path.isdir(path) and exists(os.path.join(path, f.TOKENIZER)) or path.endswith(".json"):
        before, behind = _split_added(backend)
        notes = [f"{_name(backend, behind)} behind each text is left out"] if behind else []
        if len(before) > 1:
            return Found(
                None, [f"{_name(backend, before)} in front of each text are left out: one can be held", *notes]
            )
        return Found(before[0] if before else None, notes)
    if getattr(backend.model, "end_of_word_suffix", None) == END_OF_WORD:
        return Found(backend.token_to_id("</s>"), [])
    file = os.path.join(folder, CONFIG)
    config = read_record(file, _Config, "missing", "is no tokenizer's config") if exists(file) else _Config()
    adds = exists(pieces) and pieces.endswith(".model") if config.add_bos_token is None else config.add_bos_token
    return Found(backend.token_to_id(config.bos) if adds else None, [])


def _split_added(backend: "tokenizers.Tokenizer") -> tuple[list[int], list[int]]:
    """What the post-processor puts in front of a text, and behind it."""
    text = "a"
    plain, added = (backend.encode(text, add_special_tokens=how).ids for how in (False, True))
    at = next((i for i in range(len(added)) if plain and added[i : i + len(plain)] == plain), len(added))
    return added[:at], added[at + len(plain) :]


def _name(backend: "tokenizers.Tokenizer", ids: list[int]) -> str:
    return " ".join(repr(backend.id_to_token(i)) for i in ids)


def describe_bos(words: Tokenizer) -> list[str]:
    """A line where texts begin with a token of their own."""
    if words.bos is None:
        return []
    return [f"each text begins with {words.backend.id_to_token(words.bos)!r} (id {words.bos}: model.bos_token_id)"]


def write_bos(text: str, bos: int | None, name: str) -> str:
    """A tokenizer.json (`text`) whose post-processor puts this token in front of each text and adds nothing else.

    One that does already stays what it is.

    Raises:
        UserError: the tokenizer has no such token.
    """
    backend = parse_tokenizer(text, name)
    before, behind = _split_added(backend)
    if before == ([] if bos is None else [bos]) and not behind:
        return text
    found = parse_json(text)
    last = found.get("post_processor")
    kept = [p for p in (last.get("processors") or [last] if last else []) if p.get("type") not in ADDING]
    if bos is not None:
        if (token := backend.id_to_token(bos)) is None:
            raise UserError(f"{name}: has no token {bos}, which is the model's bos_token_id")
        kept.append(_make_template(token, bos))
    found["post_processor"] = kept[0] if len(kept) == 1 else {"type": "Sequence", "processors": kept} if kept else None
    return json.dumps(found, ensure_ascii=False, indent=2)


def _make_template(token: str, bos: int) -> dict[str, Any]:
    first = lambda kind: {"SpecialToken": {"id": token, "type_id": kind}}
    texts = [{"Sequence": {"id": name, "type_id": kind}} for kind, name in enumerate("AB")]
    return {
        "type": "TemplateProcessing",
        "single": [first(0), texts[0]],
        "pair": [first(0), texts[0], first(1), texts[1]],
        "special_tokens": {token: {"id": token, "ids": [bos], "tokens": [token]}},
    }
