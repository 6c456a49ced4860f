"""A JATS article to a document: title, abstract, section headings and paragraphs, without the reference list."""

import re

from data_preprocessing.article_ids import identify
from data_preprocessing.citations import NAMED, NAMED_END, NUMBERED, NUMERIC, remove_citations
from data_preprocessing.config import TextPolicy
from data_preprocessing.markup import local, math_text, render, tidy
from data_preprocessing.records import Document, is_number

_SKIPPED = {
    "ref-list",
    "graphic",
    "inline-graphic",
    "media",
    "supplementary-material",
    "inline-supplementary-material",
    "fn-group",
    "fn",
    "table-wrap-foot",
    "object-id",
    "alt-text",
    "long-desc",
    "permissions",
    "glossary",
    "floats-group",
    "processing-meta",
    "index-term",
    "ext-link-note",
    "label",
    "attrib",
}
_BLOCKS = {
    "sec",
    "p",
    "title",
    "list",
    "list-item",
    "def-list",
    "def-item",
    "disp-quote",
    "boxed-text",
    "fig",
    "fig-group",
    "table-wrap",
    "table-wrap-group",
    "statement",
    "verse-group",
    "disp-formula",
    "disp-formula-group",
    "preformat",
    "speech",
    "app",
    "caption",
    "table",
    "chem-struct-wrap",
    "array",
}
_BREAK = "\x1e"  # between blocks inside a paragraph
_CC = re.compile(r"creativecommons\.org/(licenses|publicdomain)/([a-z-]{1,40})(?:/(\d(?:\.\d)?))?", re.I)
_CC_WORDS = re.compile(r"creative commons attribution([\w\s–-]{0,400}?)(?:licen[cs]e|\(|,|\.|$)", re.I)
_ISO = {
    "en": "eng",
    "fr": "fre",
    "de": "ger",
    "es": "spa",
    "pt": "por",
    "it": "ita",
    "zh": "chi",
    "ja": "jpn",
    "ru": "rus",
    "nl": "dut",
    "pl": "pol",
    "tr": "tur",
    "ko": "kor",
}
_SIDE_ABSTRACTS = {
    "graphical",
    "teaser",
    "toc",
    "precis",
    "key-points",
    "highlights",
    "editor",
    "plain-language-summary",
    "executive-summary",
    "summary",
    "synopsis",
    "author-highlights",
    "web-summary",
    "short",
    "video",
}
_TYPES = {
    "retraction": "retraction_notice",
    "correction": "erratum",
    "corrected-article": "erratum",
    "expression-of-concern": "concern",
    "article-commentary": "comment",
    "reply": "comment",
    "retracted-article": "retracted",
}
_RELATED = {
    "retraction-forward": "retracted",
    "retracted-article": "retraction_notice",
    "expression-of-concern-forward": "concern",
    "concern-forward": "concern",
    "correction-forward": "corrected",
    "corrected-article": "erratum",
    "commentary-article": "comment",
}


def document(article, policy: TextPolicy, member: str, name: str = "") -> Document:
    """The document of one <article> element of the member `member` of the input file `name`."""
    meta = article.find("{*}front/{*}article-meta")
    if meta is None:
        meta = article.find("{*}front-stub")
    if meta is None:
        raise ValueError("an article without article-meta")
    ids = {i.get("pub-id-type"): (i.text or "").strip() for i in meta.findall("{*}article-id")}
    pmcid = next((ids[k] for k in ("pmcid", "pmc", "pmcaid") if ids.get(k)), "")
    known = identify(pmcid, ids.get("pmid", ""), ids.get("doi", ""), name or member, ids.get("pmcid-ver", ""))
    title = meta.find("{*}title-group/{*}article-title")
    title = " ".join(_lines(title, policy)) if title is not None else ""
    abstract = _abstracts(meta, policy)
    body = article.find("{*}body") if policy.body else None
    lines = [title, *abstract, *(_blocks(body, policy) if body is not None else [])]
    language = (article.get("{http://www.w3.org/XML/1998/namespace}lang") or "").lower().split("-")[0]
    return Document(
        key=known.key,
        text="\n".join(line for line in lines if line),
        version=known.version,
        pmid=known.pmid,
        pmcid=known.pmcid,
        year=_year(meta),
        language=_ISO.get(language, language),
        licence=licence(meta),
        source=member,
        kinds=_kinds(article, meta),
        has_abstract=bool(abstract) or body is not None,
    )


def _abstracts(meta, policy: TextPolicy) -> list[str]:
    main = [a for a in meta.findall("{*}abstract") if (a.get("abstract-type") or "").lower() not in _SIDE_ABSTRACTS]
    side = [a for a in meta.findall("{*}abstract") if (a.get("abstract-type") or "").lower() in _SIDE_ABSTRACTS]
    others = [*side, *meta.findall("{*}trans-abstract")]
    lines = [line for a in main for line in _abstract(a, policy)]
    if policy.other_abstract == "append" or (policy.other_abstract == "if_missing" and not lines):
        for other in others if policy.other_abstract == "append" else others[:1]:
            lines += _abstract(other, policy)
    return lines


def _abstract(abstract, policy: TextPolicy) -> list[str]:
    """Structured abstracts come out as MEDLINE has them: "METHODS: ..."."""
    lines = []
    for child in abstract:
        if local(child) != "sec":
            lines += [] if local(child) == "title" else _block(child, policy)
            continue
        heading = child.find("{*}title")
        name = " ".join(_lines(heading, policy)).rstrip(" .:") if heading is not None else ""
        text = [line for part in child if local(part) != "title" for line in _block(part, policy)]
        if name and text and policy.labels == "keep":
            text[0] = f"{name}: {text[0]}"
        lines += text
    return lines


def _blocks(parent, policy: TextPolicy) -> list[str]:
    return [line for child in parent for line in _block(child, policy)]


def _block(element, policy: TextPolicy) -> list[str]:
    """Lines of one block: a heading, a paragraph, or what is inside a section, list or box."""
    tag = local(element)
    if not tag or tag in _SKIPPED:
        return []
    if tag in ("fig", "table-wrap"):
        lines = []
        if policy.captions == "keep" and (caption := element.find("{*}caption")) is not None:
            lines += _blocks(caption, policy)
        if tag == "table-wrap" and policy.tables == "text":
            lines += _table(element, policy)
        return lines
    if tag == "caption" and policy.captions == "drop" or tag in ("table", "array") and policy.tables == "drop":
        return []
    if tag in ("p", "title") or not any(local(child) in _BLOCKS for child in element):
        return _lines(element, policy)
    lines = []
    if (element.text or "").strip():
        lines.append(tidy(element.text))
    for child in element:
        lines += _block(child, policy) if local(child) in _BLOCKS or local(child) in _SKIPPED else _lines(child, policy)
        if (child.tail or "").strip():
            lines.append(tidy(child.tail))
    return lines


def _lines(element, policy: TextPolicy) -> list[str]:
    """An element's running text; blocks inside it (a list in a paragraph) become lines of their own."""

    def special(child) -> str | None:
        tag = local(child)
        if tag == "xref" and child.get("ref-type") == "bibr" and policy.citations == "drop":
            text = "".join(child.itertext())
            return NUMBERED if NUMERIC.match(text) else f"{NAMED}{render(child, policy.scripts)}{NAMED_END}"
        if tag in ("alternatives", "inline-formula", "disp-formula"):
            math = next(child.iter("{*}math"), None)
            if math is not None:
                return f" {math_text(math).strip()} "
            tex = next(child.iter("{*}tex-math"), None)
            if tex is not None:
                return f" {_tex(tex)} "
            picture = any(local(e) in ("graphic", "inline-graphic") for e in child.iter())
            return " [formula] " if picture and not tidy("".join(child.itertext())) else None
        if tag == "tex-math":
            return f" {_tex(child)} "
        if tag in _SKIPPED and tag != "label":
            return ""
        if tag in _BLOCKS and tag not in ("title", "p"):
            return _BREAK + _BREAK.join(_block(child, policy)) + _BREAK
        return _BREAK + render(child, policy.scripts, special) + _BREAK if tag in ("title", "p") else None

    text = render(element, policy.scripts, special)
    text = remove_citations(text)
    return [line for part in text.split(_BREAK) if (line := tidy(part))]


def _table(element, policy: TextPolicy) -> list[str]:
    rows = []
    for row in element.iter("{*}tr"):
        cells = [" ".join(_lines(cell, policy)) for cell in row if local(cell) in ("td", "th")]
        if any(cells):
            rows.append(" | ".join(cells))
    return rows


def _tex(element) -> str:
    text = "".join(element.itertext())
    _, begun, rest = text.partition("\\begin{document}")
    body, ended, _ = rest.partition("\\end{document}")
    return " ".join((body if begun and ended else text).strip().strip("$").split())


def _year(meta) -> int:
    texts = ((y.text or "").strip() for y in meta.findall("{*}pub-date/{*}year"))
    years = [int(text) for text in texts if is_number(text)]
    return min((y for y in years if 1500 < y < 2200), default=0)


def _kinds(article, meta) -> tuple[str, ...]:
    kinds = {_TYPES.get(article.get("article-type") or "")}
    kinds |= {_RELATED.get(r.get("related-article-type") or "") for r in meta.findall("{*}related-article")}
    return tuple(sorted(k for k in kinds if k))


def licence(meta) -> str:
    """CC-BY-4.0, CC0, CC-BY-NC-ND-3.0 and the like; "other" where the words fit none, "" where there is none."""
    elements = [*meta.iter("{*}license")]
    for element in [*elements, *meta.iter("{*}copyright-statement")]:
        links = [v for e in element.iter() for k, v in e.attrib.items() if k.endswith("href")]
        for text in [*links, "".join(element.itertext())]:
            if found := _CC.search(text):
                kind, version = found[2].lower(), found[3]
                name = {"zero": "CC0", "mark": "PDM"}.get(kind, "CC-" + kind.upper())
                return name + (f"-{version}" if version and name.startswith("CC-") else "")
    for element in elements:
        text = " ".join("".join(element.itertext()).split())
        if found := _CC_WORDS.search(text):
            words = found[1].lower().replace("-", "").replace(" ", "")
            return (
                "CC-BY"
                + ("-NC" if "noncommercial" in words else "")
                + ("-ND" if "noderiv" in words else "-SA" if "sharealike" in words else "")
            )
        if "public domain" in text.lower() or "CC0" in text:
            return "CC0"
    return "other" if elements else ""
