"""The document that every source yields and every later step reads."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Document:
    """One record of an input file.

    `key` identifies the record ("pmid:123", "PMC7", or "file:line"): the newest `version` of a key wins.
    `deleted` marks an order to delete `key`; it carries no text and is not counted as a record.
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
