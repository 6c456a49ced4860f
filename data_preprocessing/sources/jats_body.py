"""What a JATS article says from its title to its last paragraph: lines of headings, paragraphs, items and formulas."""

from data_preprocessing.config import TextPolicy
from data_preprocessing.text.citations import NUMERIC, mark_citation, remove_citations
from data_preprocessing.text.markup import FORMULA_EDGE, append_script, render, tidy
from data_preprocessing.text.mathml import math_text
from data_preprocessing.text.xml import local, read_entity

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
_FORMULAS = {"disp-formula", "inline-formula", "alternatives"}
_PICTURES = {"graphic", "inline-graphic"}
_PLAIN = {
    "italic",
    "bold",
    "named-content",
    "ext-link",
    "underline",
    "sc",
    "monospace",
    "uri",
    "email",
    "styled-content",
}
_NO_TEXT = "[formula]"  # of a formula that is a picture alone
_CITING = {"bibr", "ref"}  # ref-type; Wiley writes ref


def list_blocks(parent, policy: TextPolicy) -> list[str]:
    """Lines of all blocks in an element: a body, a section, a caption."""
    lines: list[str] = []
    for child in parent:
        lines += read_block(child, policy)
    return lines


def read_block(element, policy: TextPolicy) -> list[str]:
    """Lines of one block: a heading, a paragraph, or what is inside a section, list or box."""
    tag = local(element)
    if tag in ("p", "title"):
        return list_lines(element, policy)
    if not tag or tag in _SKIPPED:
        return []
    if tag in ("fig", "table-wrap"):
        lines = []
        if policy.captions == "keep" and (caption := element.find("{*}caption")) is not None:
            lines += list_blocks(caption, policy)
        if tag == "table-wrap" and policy.tables == "text":
            lines += _table(element, policy)
        return lines
    if tag == "caption" and policy.captions == "drop" and local(element.getparent()) != "boxed-text":
        return []
    if tag in ("table", "array") and policy.tables == "drop":
        return []
    if tag in _FORMULAS and (formula := _formula(element)) is not None:
        return [tidy(formula)]
    tags = [local(child) for child in element]
    if _BLOCKS.isdisjoint(tags):
        return list_lines(element, policy)
    lines = [tidy(element.text)] if (element.text or "").strip() else []
    for child, name in zip(element, tags, strict=True):
        lines += read_block(child, policy) if name in _BLOCKS or name in _SKIPPED else list_lines(child, policy)
        if child.tail and not child.tail.isspace():
            lines.append(tidy(child.tail))
    return lines


def list_lines(element, policy: TextPolicy) -> list[str]:
    """An element's running text; blocks inside it (a list in a paragraph) become lines of their own."""
    out: list[str] = []
    _walk(element, policy, out)
    text = "".join(out)
    parts = text.split(_BREAK) if _BREAK in text else [text]
    return [line for part in parts if (line := tidy(remove_citations(part)))]


def _walk(element, policy: TextPolicy, out: list[str]) -> None:
    """Append an element's text to `out`, with marks for citations and formulas, and with breaks between blocks."""
    if element.text:
        out.append(element.text)
    for child in element:
        tag = child.tag
        if tag in _PLAIN:
            _walk(child, policy, out)
        else:
            _walk_special(child, local(child), policy, out)
        if child.tail:
            out.append(child.tail)


def _walk_special(element, tag: str, policy: TextPolicy, out: list[str]) -> None:
    """The same for an element that is not simply the text in it."""
    if not tag:
        out.append(read_entity(element))
    elif tag in ("xref", "sup") and policy.citations == "drop" and (text := _citation(element, tag)):
        out.append(mark_citation(text, render(element, policy.scripts) if len(element) else text))
    elif tag in _FORMULAS and (formula := _formula(element)) is not None:
        out.append(formula)
    elif tag == "tex-math":
        out.append(_tex(element))
    elif tag == "math":
        out.append(FORMULA_EDGE + math_text(element).strip() + FORMULA_EDGE)
    elif tag in ("sup", "sub"):
        inner: list[str] = []
        _walk(element, policy, inner)
        append_script(out, tag, "".join(inner), policy.scripts)
    elif tag in ("break", "br"):
        out.append(" ")
    elif tag in _PICTURES:
        if next(element.iterancestors("{*}inline-formula", "{*}disp-formula"), None) is not None:
            out.append(_NO_TEXT)
    elif tag in ("p", "title"):
        out.append(_BREAK)
        _walk(element, policy, out)
        out.append(_BREAK)
    elif tag in _BLOCKS:
        out += [_BREAK, _BREAK.join(read_block(element, policy)), _BREAK]
    elif tag not in _SKIPPED or (tag == "label" and local(element.getparent()) not in _FORMULAS):
        _walk(element, policy, out)


def _citation(element, tag: str) -> str:
    """The text of a citation: of an <xref>, or of a <sup> that holds nothing but numbered ones; "" for others."""
    if tag == "xref":
        kind = element.get("ref-type")
        if kind is not None and kind not in _CITING:
            return ""
        text = "".join(element.itertext()) if len(element) else element.text or ""
        return text if kind or NUMERIC.match(text) else ""
    first = element[0] if len(element) else None
    if (
        first is None
        or local(first) != "xref"
        or first.get("ref-type") not in _CITING
        or (element.text or "").strip(" [(")
    ):
        return ""
    text = "".join(element.itertext())
    return text if NUMERIC.match(text) else ""


def _formula(element) -> str | None:
    """A formula from MathML, else from TeX, else [formula] for a picture; None where it is running text."""
    for math in element.iter("{*}math"):
        if text := math_text(math).strip():
            return FORMULA_EDGE + text + FORMULA_EDGE
    for tex in element.iter("{*}tex-math"):
        return _tex(tex)
    if any(local(e) in _PICTURES for e in element.iter()):
        text = "".join(element.itertext())
        for label in element.iter("{*}label"):
            text = text.replace("".join(label.itertext()), "", 1)
        return None if tidy(text) else FORMULA_EDGE + _NO_TEXT + FORMULA_EDGE
    return None


def _table(element, policy: TextPolicy) -> list[str]:
    rows = []
    for row in element.iter("{*}tr"):
        cells = [" ".join(list_lines(cell, policy)) for cell in row if local(cell) in ("td", "th")]
        if any(cells):
            rows.append(" | ".join(cells))
    return rows


def _tex(element) -> str:
    text = "".join(element.itertext())
    _, begun, rest = text.partition("\\begin{document}")
    body, ended, _ = rest.partition("\\end{document}")
    formula = " ".join((body if begun and ended else text).strip().strip("$").split())
    return FORMULA_EDGE + formula + FORMULA_EDGE
