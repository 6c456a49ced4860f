"""A JATS article to a document: title, abstract, section headings and paragraphs, without the reference list."""

from data_preprocessing.config import TextPolicy
from data_preprocessing.sources.article_ids import identify
from data_preprocessing.sources.jats_body import list_blocks, list_lines, read_block
from data_preprocessing.text.document import Document
from data_preprocessing.text.spellings import find_licence_link, find_licence_words, normalise_language
from data_preprocessing.text.xml import local
from modelzoo.reading import is_number

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
        raise ValueError("an article without article-meta, so without title, abstract and identifiers")
    ids = {i.get("pub-id-type"): (i.text or "").strip() for i in meta.findall("{*}article-id")}
    pmcid = next((ids[k] for k in ("pmcid", "pmc", "pmcaid") if ids.get(k)), "")
    known = identify(pmcid, ids.get("pmid", ""), ids.get("doi", ""), name or member, ids.get("pmcid-ver", ""))
    title = meta.find("{*}title-group/{*}article-title")
    title = " ".join(list_lines(title, policy)) if title is not None else ""
    abstract = _abstracts(meta, policy)
    body = article.find("{*}body") if policy.body else None
    floats = article.find("{*}floats-group") if policy.body else None
    parts = [list_blocks(part, policy) for part in (body, floats) if part is not None]
    lines = [title, *abstract, *(line for part in parts for line in part)]
    return Document(
        key=known.key,
        text="\n".join(line for line in lines if line),
        version=known.version,
        pmid=known.pmid,
        pmcid=known.pmcid,
        year=_year(meta),
        language=normalise_language(article.get("{http://www.w3.org/XML/1998/namespace}lang") or ""),
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
            lines += [] if local(child) == "title" else read_block(child, policy)
            continue
        heading = child.find("{*}title")
        name = " ".join(list_lines(heading, policy)).rstrip(" .:") if heading is not None else ""
        text = [line for part in child if local(part) != "title" for line in read_block(part, policy)]
        if name and text and policy.labels == "keep":
            text[0] = f"{name}: {text[0]}"
        lines += text
    return lines


def _year(meta) -> int:
    texts = ((y.text or "").strip() for y in meta.findall("{*}pub-date/{*}year"))
    years = [int(text) for text in texts if is_number(text, 9)]
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
            if name := find_licence_link(text):
                return name
    for element in elements:
        text = " ".join("".join(element.itertext()).split())
        if name := find_licence_words(text):
            return name
        if "public domain" in text.lower() or "CC0" in text:
            return "CC0"
    return "other" if elements else ""
