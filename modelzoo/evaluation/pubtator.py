"""PubTator files (BC5CDR, NCBI-disease): titles and abstracts with entities by character, made words with tags."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from modelzoo.config.errors import UserError

_TEXT = re.compile(r"([^|\t]+)\|([ta])\|(.*)")
_WORD = re.compile(r"\w+|[^\w\s]")
_BREAK = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9(\[])")


class Entity(NamedTuple):
    """Characters [begin, end) of the document's text (title, a space, abstract)."""

    begin: int
    end: int
    kind: str
    where: str


class Document(NamedTuple):
    """A document and its annotations."""

    id: str
    text: str
    entities: list[Entity]
    where: str


def read_documents(path: str, text: str) -> Iterator[Document]:
    """The documents of a PubTator file.

    Raises:
        UserError: a line that is neither text nor annotation, or an entity whose characters are not its mention.
    """
    where, name, parts, entities = f"{path}:1", None, {}, []
    for n, line in enumerate([*text.splitlines(), ""], 1):
        if not line.strip():
            if name is not None:
                yield Document(name, _joined(parts), entities, where)
            name, parts, entities = None, {}, []
            continue
        if match := _TEXT.fullmatch(line):
            if match[2] in parts or name not in (None, match[1]):
                raise UserError(f"{path}:{n}: document {match[1]} begins without a blank line before it")
            if name is None:
                name, where = match[1], f"{path}:{n}"
            parts[match[2]] = match[3]
            continue
        cells = line.split("\t")
        if cells[0] != name:
            raise UserError(f"{path}:{n}: is neither ID|t|title, ID|a|abstract nor an annotation of document {name}")
        if len(cells) >= 5 and cells[1].isdecimal() and cells[2].isdecimal():
            begin, end = int(cells[1]), int(cells[2])
            if _joined(parts)[begin:end] != cells[3]:
                raise UserError(f"{path}:{n}: characters {begin}-{end} of document {name} are not {cells[3]!r}")
            entities.append(Entity(begin, end, cells[4], f"{path}:{n}"))
        elif len(cells) != 4:  # four columns: a relation (CID), which is another task's
            raise UserError(f"{path}:{n}: is no annotation (ID, from, to, mention, type, concept)")


def _joined(parts: dict[str, str]) -> str:
    return parts.get("t", "") + (" " + parts["a"] if "a" in parts else "")


def examples(path: str, text: str, sentences: bool) -> Iterator[tuple[str, str, list[str], list[str]]]:
    """(where, id, words, IOB2 tags) of each sentence or document.

    Sentences end at . ! or ? before a capital, digit or bracket, never inside an entity. Of entities that overlap the
    longer counts. A word counts to an entity that covers any character of it.
    """
    for document in _distinct(read_documents(path, text)):
        chosen: list[Entity] = []
        for e in sorted(document.entities, key=lambda e: (e.begin - e.end, e.begin)):
            if all(e.end <= c.begin or c.end <= e.begin for c in chosen):
                chosen.append(e)
        breaks = [m.end() for m in _BREAK.finditer(document.text)] if sentences else []
        breaks = [b for b in breaks if not any(e.begin < b < e.end for e in chosen)]
        for number, (begin, end) in enumerate(zip([0, *breaks], [*breaks, len(document.text)], strict=True)):
            words = [(m[0], m.start() + begin, m.end() + begin) for m in _WORD.finditer(document.text[begin:end])]
            if words:
                name = f"{document.id}_s{number}" if sentences else document.id
                yield document.where, name, [w for w, _, _ in words], _tags(words, chosen)


def _distinct(found: Iterator[Document]) -> Iterator[Document]:
    """The documents, less word-for-word repetitions (NCBI-disease's training set has one)."""
    seen: dict[str, Document] = {}
    for document in found:
        first = seen.setdefault(document.id, document)
        if first is document:
            yield document
        elif first.text != document.text:
            raise UserError(f"{document.where}: document {document.id} occurs twice with different words; remove one")


def _tags(words: list[tuple[str, int, int]], entities: list[Entity]) -> list[str]:
    tags, last = [], None
    for _, begin, end in words:
        entity = next((e for e in entities if begin < e.end and e.begin < end), None)
        tags.append("O" if entity is None else ("I-" if entity is last else "B-") + entity.kind)
        last = entity
    return tags
