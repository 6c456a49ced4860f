"""Files of words with tags, a word a line (CoNLL's columns), as words and IOB2 tags."""

import re
from collections.abc import Iterator, Sequence

from modelzoo.config.errors import UserError
from modelzoo.evaluation.examples.files import split_lines

_TAG = re.compile(r"O|([BIESLU])(?:-(\S+))?")


def read_conll(path: str, text: str, only: str | None = None) -> Iterator[tuple[str, str, list[str], list[str]]]:
    """(where, id, words, IOB2 tags) of each sentence: a word and its tag a line (first and last column), blank between.

    Columns end at tabs where the file has any, else at blanks; no other space ends one. Tags are IOB2, IOB1, IOE, IOBES
    or BILOU.

    Args:
        only: the type of tags that name none (B, I).
    """
    words, tags, number, begun, tabs = [], [], 0, 1, "\t" in text
    for n, line in enumerate([*split_lines(text), ""], 1):
        line = line.strip(" \t" if not tabs else " ")
        if not line.strip("\t") or line.startswith("-DOCSTART-"):
            if words:
                number += 1
                yield f"{path}:{begun}", str(number), words, convert_tags(tags)
            words, tags, begun = [], [], n + 1
            continue
        cells = [c.strip(" ") for c in line.rstrip("\t").split("\t")] if tabs else re.split(" +", line)
        if len(cells) < 2:
            raise UserError(f"{path}:{n}: has no tag after the word {cells[0]!r}{' (and no tab)' if tabs else ''}")
        match = _TAG.fullmatch(cells[-1])
        if match is None:
            hint = "; remove the line if it names the columns" if n == 1 else ""
            raise UserError(f"{path}:{n}: {cells[-1]!r} is no IOB tag (O, B-Type, I-Type; E-, S-, L-, U-){hint}")
        if not cells[0]:
            raise UserError(f"{path}:{n}: has no word before the tag {cells[-1]!r}")
        if match[1] and not (match[2] or only):
            raise UserError(f"{path}:{n}: tag {cells[-1]!r} names no type, and the template knows several")
        words.append(cells[0])
        tags.append(f"{match[1]}-{match[2] or only}" if match[1] else "O")


def convert_tags(tags: Sequence[str]) -> list[str]:
    """Tags in IOB2, of IOB1 or IOE, which mark a border between neighbours alone, or of IOBES or BILOU."""
    made, inside = [], None
    for tag in tags:
        kind = tag[2:]
        made.append(tag if tag == "O" else ("I-" if tag[0] in "IEL" and inside == kind else "B-") + kind)
        inside = kind if tag[0] in "BI" else None
    return made
