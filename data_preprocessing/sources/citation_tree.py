"""Citations, book articles and deletion orders read as trees: every legal spelling, at a parser's pace.

What is read of a record is defined here once; `pubmed` reads the usual spelling of a citation faster, and to the same
document. Elements are those of NLM's DTD (pubmed_250101.dtd).
"""

import re
from collections.abc import Iterable

from data_preprocessing.config import TextPolicy
from data_preprocessing.text.document import Document
from data_preprocessing.text.markup import render, tidy
from data_preprocessing.text.xml import parse_fragment
from modelzoo.reading import is_number

ANY_YEAR = re.compile(r"(1[5-9]\d\d|20\d\d)", re.ASCII)  # in a MedlineDate such as "1998 Dec-1999 Jan"
_FOUR = re.compile(r"\s*(\d{4})", re.ASCII)
_PMC_ID = re.compile(r"(?:PMC)?(\d{1,12})", re.ASCII)
_OTHER_ID = re.compile(r"\s*(PMC\d{1,12})", re.ASCII)
_NO_TITLE = re.compile(r"\[?not available\]?\.?$", re.I)
_BRACKETED = re.compile(r"\[([^\[]*)\](\.?)")
_ARTICLE_IN = re.compile(r"\[Articles? in [A-Z][^\[\]]{2,60}\]\.?$")
_DATES = ("DateCreated", "DateCompleted", "DateRevised")
_KINDS = ("retracted", "retraction_notice", "concern", "erratum", "corrected", "comment")  # in this order
_TYPES = {  # PublicationType -> field of config.Kinds
    "Retracted Publication": "retracted",
    "Retraction of Publication": "retraction_notice",
    "Retraction Notice": "retraction_notice",
    "Published Erratum": "erratum",
    "Comment": "comment",
}
_LINKS = {  # RefType of CommentsCorrections -> field of config.Kinds
    "RetractionIn": "retracted",
    "RetractionOf": "retraction_notice",
    "ExpressionOfConcernIn": "concern",
    "ErratumFor": "erratum",
    "ErratumIn": "corrected",
    "CorrectedandRepublishedIn": "corrected",
    "CommentOn": "comment",
}


def read_citation(record: bytes, policy: TextPolicy) -> Document:
    """One PubmedArticle or MedlineCitation.

    Raises:
        ValueError: it has no PMID or no Article, a number in it is none, or it is not well-formed.
    """
    root = parse_fragment(record)[0]
    cited = root if root.tag == "MedlineCitation" else root.find("MedlineCitation")
    if cited is None or (pmid := cited.find("PMID")) is None:
        raise ValueError("a record without a PMID")
    number = _read_pmid(pmid, "a record without a PMID")
    article = cited.find("Article")
    if article is None:
        raise ValueError(f"PMID {number} has no Article")
    others = [other for e in cited.iterfind("OtherAbstract") if (other := _read_abstract(e, policy))]
    text = add_others(_read_abstract(article.find("Abstract"), policy), others, policy)
    return Document(
        key="pmid:" + number,
        text=assemble(
            _read_text(article.find("ArticleTitle"), policy),
            _read_text(article.find("VernacularTitle"), policy) if policy.vernacular_title == "append" else "",
            text,
            policy,
        ),
        version=_read_version(pmid),
        date=max((_read_date(e) for name in _DATES for e in cited.iterfind(name)), default=0),
        pmid=number,
        pmcid=_find_pmcid(root, cited),
        year=_read_year(article.find("Journal/JournalIssue/PubDate")),
        language=_read_languages(article),
        kinds=find_kinds(
            ((t.text or "").strip() for t in article.iterfind("PublicationTypeList/PublicationType")),
            (c.get("RefType", "") for c in cited.iterfind("CommentsCorrectionsList/CommentsCorrections")),
        ),
        has_abstract=bool(text),
    )


def read_book(record: bytes, policy: TextPolicy) -> Document:
    """A PubmedBookArticle: its own title or else the book's, its abstract; sections' titles are not text.

    Raises:
        ValueError: as of `read_citation`.
    """
    root = parse_fragment(record)[0]
    book = root.find("BookDocument")
    if book is None or (pmid := book.find("PMID")) is None:
        raise ValueError("a book article without a PMID")
    number = _read_pmid(pmid, "a book article without a PMID")
    title = book.find("ArticleTitle") if book.find("ArticleTitle") is not None else book.find("Book/BookTitle")
    vernacular = book.find("VernacularTitle") if policy.vernacular_title == "append" else None
    abstract = _read_abstract(book.find("Abstract"), policy)
    pmc = root.findtext("PubmedBookData/ArticleIdList/ArticleId[@IdType='pmc']") or ""
    return Document(
        key=f"pmid:{number}",
        pmid=number,
        version=_read_version(pmid),
        year=_read_year(book.find("Book/PubDate")),
        text=assemble(_read_text(title, policy), _read_text(vernacular, policy), abstract, policy),
        pmcid=pmc if pmc.startswith("PMC") else "",
        has_abstract=bool(abstract),
        language=_read_languages(book),
    )


def read_deletions(record: bytes) -> list[Document]:
    """The orders of one DeleteCitation or DeleteDocument.

    Raises:
        ValueError: as of `read_citation`.
    """
    what = "a deletion whose PMID is no number"
    return [Document(key=f"pmid:{_read_pmid(e, what)}", deleted=True) for e in parse_fragment(record)[0].iter("PMID")]


def add_others(text: str, others: list[str], policy: TextPolicy) -> str:
    """The abstract with those in other languages, or in plain language, as the policy wants them."""
    if policy.other_abstract == "append" or (policy.other_abstract == "if_missing" and not text):
        chosen = others if policy.other_abstract == "append" else others[:1]
        return "\n".join(part for part in (text, *chosen) if part)
    return text


def assemble(title: str, vernacular: str, abstract: str, policy: TextPolicy) -> str:
    """Title on the first line, then the abstract; a translated title loses its [brackets] and "[Article in ...]"."""
    if policy.brackets == "strip" and "[" in title:
        title = _ARTICLE_IN.sub("", title).rstrip()
        if inner := _BRACKETED.fullmatch(title):
            title = inner[1] if inner[1].endswith((".", "?", "!")) else inner[1] + inner[2]
    if title and _NO_TITLE.match(title):
        title = ""
    return "\n".join(part for part in (title, vernacular, abstract) if part)


def find_kinds(types: Iterable[str], links: Iterable[str]) -> tuple[str, ...]:
    """Fields of config.Kinds that a record's publication types and links to other records mark."""
    found = {_TYPES.get(name) for name in types} | {_LINKS.get(name) for name in links}
    return tuple(kind for kind in _KINDS if kind in found)


def put_label(label: str, text: str) -> str:
    """A part of a structured abstract with its heading; MEDLINE's UNLABELLED is none."""
    return f"{label}: {text}" if label and text and label.upper() != "UNLABELLED" else text


def _read_text(element, policy: TextPolicy) -> str:
    return tidy(render(element, policy.scripts)) if element is not None else ""


def _read_abstract(abstract, policy: TextPolicy) -> str:
    parts = []
    for part in abstract.iterfind("AbstractText") if abstract is not None else ():
        text = _read_text(part, policy)
        parts.append(put_label(tidy(part.get("Label", "")), text) if policy.labels == "keep" else text)
    return "\n".join(part for part in parts if part)


def _read_pmid(element, otherwise: str) -> str:
    """The digits of a PMID, without zeros before them.

    Raises:
        ValueError: with the words of `otherwise`, where it is no number.
    """
    text = "".join(element.itertext()).strip()
    if not is_number(text, 12):
        raise ValueError(otherwise)
    return str(int(text))


def _read_version(pmid) -> int:
    text = pmid.get("Version", "1").strip()
    if not is_number(text, 9):
        raise ValueError(f"the version {text[:40]!r} is no number")
    return int(text)


def _read_date(element) -> int:
    year, month, day = ((element.findtext(part) or "").strip() for part in ("Year", "Month", "Day"))
    fits = is_number(year, 4) and is_number(month, 2) and is_number(day, 2)
    return int(year) * 10000 + int(month) * 100 + int(day) if fits else 0


def _read_year(published) -> int:
    """The year of a PubDate: its Year, or the first year that its words name; 0 where there is none."""
    if published is None:
        return 0
    year = _FOUR.match(published.findtext("Year") or "") or ANY_YEAR.search("".join(published.itertext()))
    return int(year[1]) if year else 0


def _read_languages(article) -> str:
    return ",".join((e.text or "").strip().lower() for e in article.iterfind("Language"))


def _find_pmcid(root, cited) -> str:
    ids = root.findall("PubmedData/ArticleIdList/ArticleId")
    if ids:
        texts = [(e.text or "").strip() for e in ids if e.get("IdType", "").startswith("pmc")]
        found = next(filter(None, map(_PMC_ID.match, texts)), None)
        return "PMC" + found[1] if found else ""
    found = next(filter(None, (_OTHER_ID.match(e.text or "") for e in cited.iterfind("OtherID"))), None)
    return found[1] if found else ""
