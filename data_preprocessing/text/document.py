"""The document that every source yields and every later step reads, and what of a source's words is taken for a number.

Every source makes its documents with `Document` itself, which refuses what later steps cannot hold; a record that is
refused becomes `unreadable_record`, which is counted and shown in the report, and ends no job.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from modelzoo.config.errors import UserError

MAX_TEXT = 16 << 20  # characters of one record: ten times the longest article, and what memory is planned for
MAX_FACTS = 10_000  # characters of a record's key and other facts together
MAX_NUMBER = 2**31 - 1  # a version, a date
MAX_YEAR = 9999
TRIED = 100  # records of a file, all of them unreadable, after which it is not what it was taken for
_C1 = re.compile("[\x80-\x9f]")
_CP1252 = {n: bytes([n]).decode("cp1252", "ignore") for n in range(0x80, 0xA0)}
_YEAR = re.compile(r"\s{0,20}(?:(\d{4})(?:\d{4}\s*$|[-/. T])|(\d{1,4})\s*$)", re.ASCII)  # 2020, 20200131, 2020-01-31
_YEAR_INSIDE = re.compile(r"\b(1[5-9]\d\d|2[01]\d\d)\b", re.ASCII)  # May 14, 2023; 14.05.2023


@dataclass(slots=True)
class Document:
    """One record of an input file.

    `key` identifies the record ("pmid:123", "PMC7", or "file:line"): the newest `version` of a key wins.
    `deleted` marks an order to delete `key`; it carries no text and is not counted as a record.

    Raises:
        ValueError: a text or fact is not Unicode text or too long, or a number is out of range.
    """

    key: str
    text: str = ""
    version: int = 1
    date: int = 0  # yyyymmdd of the latest revision that the record gives, 0 = none
    pmid: str = ""
    pmcid: str = ""
    year: int = 0
    language: str = ""
    licence: str = ""
    source: str = ""  # member of a package, or line of a JSONL
    kinds: tuple[str, ...] = ()  # fields of config.Kinds that apply
    has_abstract: bool = True
    deleted: bool = False
    prompt: str | None = None  # prompt/completion only; text is then the completion
    extra: dict = field(default_factory=dict)

    def __post_init__(self):
        text, facts = self.text, f"{self.key}{self.pmid}{self.pmcid}{self.language}{self.licence}{self.source}"
        if self.prompt is not None:
            text = self.prompt + text
        if len(text) > MAX_TEXT:
            raise ValueError(f"a text of {len(text):,} characters; at most {MAX_TEXT:,} are taken")
        if len(facts) > MAX_FACTS:
            raise ValueError(f"facts of {len(facts):,} characters; at most {MAX_FACTS:,} are taken")
        if not (0 <= self.version <= MAX_NUMBER and 0 <= self.date <= MAX_NUMBER and 0 <= self.year <= MAX_YEAR):
            raise ValueError(f"the version {self.version}, date {self.date} or year {self.year} is out of range")
        if not (text.isascii() and facts.isascii()):
            try:
                text.encode()
                facts.encode()
            except UnicodeEncodeError:
                raise ValueError("half a surrogate pair; not Unicode text") from None


def unreadable_record(key: str, source: str, why: str) -> Document:
    """A document that stands for a record which cannot be read; its text is the reason, for the report."""
    return Document(f"unreadable:{show(key)}", show(why), source=show(source), kinds=("unreadable",))


def show(text: str, most: int = 1000) -> str:
    """Text as it can always be written: no half surrogate pairs, no line breaks, at most `most` characters."""
    return " ".join(text[:most].encode("utf-8", "backslashreplace").decode().split())[:most]


def restore_cp1252(text: str) -> str:
    """C1 controls as the characters that they are in cp1252 (U+0096: a dash), which is how they come into texts.

    The five that cp1252 leaves undefined are left out. HTML reads numeric references alike (WHATWG, section 13.2.5.80).
    """
    return text.translate(_CP1252) if not text.isascii() and _C1.search(text) else text


def read_year(value: object) -> int:
    """The year that a source gives as a number or text: 2020, 20200131, 2020.0, "2020-01-31T00:00", "May 14, 2023".

    0 where it gives none, or several.
    """
    if value is None:
        return 0
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str):
        value = str(value) if type(value) is int else ""
    if found := _YEAR.match(value):
        return int(found[1] or found[2])
    inside = set(_YEAR_INSIDE.findall(value[:100].replace(".", " ")))
    return int(inside.pop()) if len(inside) == 1 else 0


def refuse_if_unreadable(documents: Iterator[Document], path: str) -> Iterator[Document]:
    """Pass a file's documents on, if any of the first TRIED records can be read.

    Raises:
        UserError: none can: the file is damaged, or the config does not fit it. The message is the first record's.
    """
    first: list[Document] = []
    for document in documents:
        if "unreadable" not in document.kinds:
            yield from first
            yield document
            yield from documents
            return
        first.append(document)
        if len(first) == TRIED:
            break
    if first:
        raise UserError(
            f"{path}:{first[0].source}: {first[0].text} (none of the {len(first)} records read is readable)"
        )
