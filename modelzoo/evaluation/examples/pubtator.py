"""PubTator files (BC5CDR, NCBI-disease): titles and abstracts with entities by character, made words with tags."""

import bisect
import re
from collections.abc import Iterator
from typing import NamedTuple

from modelzoo.config.errors import UserError
from modelzoo.evaluation.examples.files import split_lines
from modelzoo.evaluation.examples.remarks import Remark, pass_over

_TEXT = re.compile(r"([^|\t]+)\|([ta])\|(.*)")
_PLACE = re.compile(r"[0-9]{1,9}")  # of a character
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
    where, name, parts, entities, whole = f"{path}:1", None, {}, [], None
    for n, line in enumerate([*split_lines(text), ""], 1):
        if not line.strip():
            if name is not None:
                yield Document(name, _joined(parts), entities, where)
            name, parts, entities, whole = None, {}, [], None
            continue
        if match := _TEXT.fullmatch(line):
            if match[2] in parts or name not in (None, match[1]):
                raise UserError(f"{path}:{n}: document {match[1]} begins without a blank line before it")
            if name is None:
                name, where = match[1], f"{path}:{n}"
            parts[match[2]], whole = match[3], None
            continue
        cells = line.split("\t")
        if cells[0] != name:
            raise UserError(f"{path}:{n}: is neither ID|t|title, ID|a|abstract nor an annotation of document {name}")
        if len(cells) >= 5 and _PLACE.fullmatch(cells[1]) and _PLACE.fullmatch(cells[2]):
            begin, end = int(cells[1]), int(cells[2])
            whole = _joined(parts) if whole is None else whole
            found = whole[begin:end].strip(" ")
            if begin >= end or not found or found != cells[3].strip(" "):  # a mention of NCBI-disease ends in blanks
                raise UserError(f"{path}:{n}: characters {begin}-{end} of document {name} are not {cells[3][:80]!r}")
            begin = whole.index(found, begin)
            end = begin + len(found)
            entities.append(Entity(begin, end, cells[4], f"{path}:{n}"))
        elif len(cells) != 4:  # four columns: a relation (CID), which is another task's
            raise UserError(f"{path}:{n}: is no annotation (ID, from, to, mention, type, concept)")


def _joined(parts: dict[str, str]) -> str:
    return parts.get("t", "") + (" " + parts["a"] if "a" in parts else "")


def read_pubtator(
    path: str, text: str, sentences: bool, remark: Remark = pass_over
) -> Iterator[tuple[str, str, list[str], list[str]]]:
    """(where, id, words, IOB2 tags) of each sentence or document.

    Sentences end at . ! or ? before a capital, digit or bracket, never inside an entity. Of entities that overlap the
    longer counts. A word counts to an entity that covers any character of it.
    """
    for document in _distinct(read_documents(path, text), remark):
        chosen = _choose(document.entities)
        for e in document.entities if len(chosen) < len(document.entities) else ():
            if e not in chosen:
                remark("entities that overlap a longer one: left out", e.where)
        if not document.text.strip():
            remark("documents without a word: left out", document.where)
        ends = [e.end for e in chosen]
        breaks = [m.end() for m in _BREAK.finditer(document.text)] if sentences else []
        breaks = [b for b in breaks if (i := bisect.bisect_right(ends, b)) == len(chosen) or chosen[i].begin >= b]
        for number, (begin, end) in enumerate(zip([0, *breaks], [*breaks, len(document.text)], strict=True)):
            words = [(m[0], m.start() + begin, m.end() + begin) for m in _WORD.finditer(document.text[begin:end])]
            if words:
                name = f"{document.id}_s{number}" if sentences else document.id
                yield document.where, name, [w for w, _, _ in words], _tags(words, chosen, ends)


def _choose(entities: list[Entity]) -> list[Entity]:
    """Entities that do not overlap, in the text's order: of those that do, the longer, and of equals the first."""
    chosen: list[Entity] = []
    for e in sorted(entities, key=lambda e: (e.begin - e.end, e.begin)):
        i = bisect.bisect_left(chosen, e.begin, key=lambda c: c.begin)
        if (i == 0 or chosen[i - 1].end <= e.begin) and (i == len(chosen) or e.end <= chosen[i].begin):
            chosen.insert(i, e)
    return chosen


def _distinct(found: Iterator[Document], remark: Remark) -> Iterator[Document]:
    """The documents, less word-for-word repetitions (NCBI-disease's training set has one)."""
    seen: dict[str, Document] = {}
    for document in found:
        first = seen.setdefault(document.id, document)
        if first is document:
            yield document
        elif first.text != document.text:
            raise UserError(f"{document.where}: document {document.id} occurs twice with different words; remove one")
        else:
            remark("documents that are there already, word for word: left out", document.where)


def _tags(words: list[tuple[str, int, int]], entities: list[Entity], ends: list[int]) -> list[str]:
    """IOB2 tags of words in order, by entities that do not overlap, in order; `ends` are theirs."""
    tags, last = [], None
    for _, begin, end in words:
        i = bisect.bisect_right(ends, begin)  # the first that ends after the word's begin
        entity = entities[i] if i < len(entities) and entities[i].begin < end else None
        tags.append("O" if entity is None else ("I-" if entity is last else "B-") + entity.kind)
        last = entity
    return tags
