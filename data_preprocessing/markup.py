"""Inline markup to readable text: italics vanish, superscripts and formulas stay legible, white space is one blank."""

import functools
import re
import unicodedata
from html.entities import html5

from lxml import etree

from data_preprocessing.records import restore_cp1252

_SUPERSCRIPT = str.maketrans("0123456789+-−=()ni", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁼⁽⁾ⁿⁱ")
_SUBSCRIPT = str.maketrans("0123456789+-−=()", "₀₁₂₃₄₅₆₇₈₉₊₋₋₌₍₎")
_NUMBER = re.compile(r"[-−+–]?\d+([.,]\d+)?$")
# Soft hyphens, zero-width marks, byte-order marks and controls carry no text.
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u2064\ufeff\ufff9-\ufffb\x00-\x08\x0e-\x1f\x7f-\x9f]")
_PARSER = {"resolve_entities": False, "no_network": True, "load_dtd": False, "huge_tree": False}
_FRAME = b'<x xmlns:mml="http://www.w3.org/1998/Math/MathML">%b</x>'
_ENTITY = re.compile(rb"<!\[CDATA\[.*?\]\]>|&([A-Za-z][A-Za-z0-9]{0,40});", re.S)
_PREDEFINED = (b"amp", b"lt", b"gt", b"quot", b"apos")


def hardened_parser(**extra) -> etree.XMLParser:
    """An XML parser that reads no DTD, no entity of the document's own, and nothing outside the file."""
    return etree.XMLParser(**_PARSER, **extra)


def parse_fragment(fragment: bytes):
    """An element that holds the XML `fragment` (UTF-8), without comments and instructions.

    Raises:
        ValueError: it is not well-formed.
    """
    try:
        return etree.fromstring(_FRAME % _ENTITY.sub(_number_entity, fragment), _fragment_parser())
    except etree.XMLSyntaxError as e:
        raise ValueError(str(e)) from None


def _number_entity(found: re.Match[bytes]) -> bytes:
    """&eacute; and the like, which only the unread DTD declares, as numeric references."""
    characters = html5.get(found[1].decode() + ";") if found[1] and found[1] not in _PREDEFINED else None
    return found[0] if characters is None else b"".join(b"&#%d;" % ord(c) for c in characters)


@functools.cache  # one costs as much as what it parses
def _fragment_parser() -> etree.XMLParser:
    return hardened_parser(remove_comments=True, remove_pis=True, encoding="utf-8")


def tidy(text: str) -> str:
    """NFC, one blank for any run of white space, no invisible characters; C1 controls as what they were in cp1252."""
    if text.isprintable() and "  " not in text:  # then every white space in it is one blank
        return text.strip() if text.isascii() else unicodedata.normalize("NFC", text).strip()
    if not text.isascii():
        text = restore_cp1252(text)
        text = _INVISIBLE.sub(lambda m: " " if m[0] in "\u2028\u2029" else "", text)
        text = unicodedata.normalize("NFC", text)
    else:
        text = _INVISIBLE.sub("", text)
    return " ".join(text.split())


def local(element) -> str:
    """The tag without its namespace; "" for comments and processing instructions."""
    tag = element.tag
    if not isinstance(tag, str):
        return ""
    return tag.rpartition("}")[2]


def script(inner: str, before: str, tag: str, style: str) -> str:
    """Text of a <sup> or <sub> that follows `before`."""
    core = inner.strip()
    if not core or style == "plain":
        return inner
    if style == "unicode":
        table = _SUPERSCRIPT if tag == "sup" else _SUBSCRIPT
        raised = core.translate(table)
        return raised if all(ord(c) in table for c in core) else inner
    # Readable: the one place where dropping the mark changes the meaning is a power of a number (10<sup>6</sup>).
    if tag == "sup" and _NUMBER.match(core) and before[-1:].isdigit():
        return "^" + core
    return inner


def render(element, style: str, special=None) -> str:
    """All text under `element`. `special(child)` may return a replacement string, or None to go on as usual."""
    out: list[str] = []
    _walk(element, style, special, out)
    return resolve_escaped("".join(out), style)


_INLINE = "i|b|u|em|strong|small|sc|italic|bold|sup|sub"
_ESCAPED = re.compile(
    rf"<({_INLINE})(?:\s[^<>]{{0,200}})?>((?:[^<]|<(?!/?(?:{_INLINE})[\s>]))*+)</\1\s{{0,20}}>", re.I
)
_ESCAPED_BREAK = re.compile(r"<br\s{0,20}/?>", re.I)


def resolve_escaped(text: str, style: str) -> str:
    """The text with tags that were escaped (`&lt;i&gt;`) as inline markup is; what has no end tag is text as it was."""
    if "<" not in text:
        return text
    for _ in range(8):  # from the inside out
        if "</" not in text:
            break
        text, found = _ESCAPED.subn(lambda m: _without_tag(m, style), text)
        if not found:
            break
    return _ESCAPED_BREAK.sub(" ", text)


def _without_tag(found: re.Match[str], style: str) -> str:
    tag, at = found[1].lower(), found.start()
    return script(found[2], found.string[max(at - 3, 0) : at], tag, style) if tag in ("sup", "sub") else found[2]


def _walk(element, style: str, special, out: list[str]) -> None:
    if element.text:
        out.append(element.text)
    for child in element:
        tag = local(child)
        if tag:
            replacement = special(child) if special else None
            if replacement is not None:
                out.append(replacement)
            elif tag == "math":
                out.append(" " + math_text(child).strip() + " ")
            elif tag in ("sup", "sub"):
                # A line break before a script is a pretty-printer's (efetch): the script belongs to the word before.
                if out and "\n" in out[-1][len(out[-1].rstrip()) :]:
                    out[-1] = out[-1].rstrip()
                inner = render(child, style, special)
                out.append(script(inner, "".join(out[-3:]), tag, style))
            elif tag in ("break", "br"):
                out.append(" ")
            else:
                _walk(child, style, special, out)
        elif child.tag is etree.Entity:
            text = html5.get(child.name + ";")  # &eacute; and the like, which only the unread DTD declares
            if text is None:
                raise ValueError(f"undefined entity {child.text}")
            out.append(text)
        if child.tail:
            out.append(child.tail)


_MATH_UNSEEN = ("annotation", "annotation-xml", "mphantom", "maligngroup", "malignmark", "")
_MATH_TOKENS = ("mi", "mn", "mo", "mtext", "ms", "ci", "cn")


def math_text(element) -> str:
    """MathML as linear text: (a+b)/c, x_i^2, sqrt(x), rows of matrices by ';'."""
    tag = local(element)
    if tag in _MATH_UNSEEN:
        return ""
    if tag in _MATH_TOKENS:
        text = " ".join("".join(element.itertext()).split())
        return _operator(text) if tag == "mo" else text
    if tag == "mspace":
        return " "
    kids = [k for k in element if local(k)]
    parts = [math_text(k) for k in kids]
    for layout in (_fraction_or_root(tag, parts), _scripts(tag, parts), _table_or_fence(element, tag, parts)):
        if layout is not None:
            return layout
    if not kids:
        return " ".join((element.text or "").split())
    return (element.text or "").strip() + "".join(p + (k.tail or "").strip() for p, k in zip(parts, kids, strict=True))


def _fraction_or_root(tag: str, parts: list[str]) -> str | None:
    """A fraction or root of the children's texts `parts`; None for other tags."""
    if tag == "mfrac" and len(parts) == 2:
        return f"{_group(parts[0])}/{_group(parts[1])}"
    if tag == "msqrt":
        return f"sqrt({''.join(parts)})"
    if tag == "mroot" and len(parts) == 2:
        return f"root({parts[0]}, {parts[1]})"
    return None


def _scripts(tag: str, parts: list[str]) -> str | None:
    """A base with what is above and below it; None for other tags."""
    if tag == "mover" and len(parts) == 2:
        return _over(parts)
    if tag == "msup" and len(parts) == 2:
        return f"{_group(parts[0])}^{_group(parts[1])}"
    if tag in ("msub", "munder") and len(parts) == 2:
        return f"{parts[0]}_{_group(parts[1])}" if parts[1] else parts[0]
    if tag in ("msubsup", "munderover") and len(parts) == 3:
        return f"{parts[0]}_{_group(parts[1])}^{_group(parts[2])}"
    return None


def _table_or_fence(element, tag: str, parts: list[str]) -> str | None:
    """A matrix, one of its rows, or a list in brackets; None for other tags."""
    if tag == "mtable":
        return "[" + "; ".join(parts) + "]"
    if tag in ("mtr", "mlabeledtr"):
        return ", ".join(parts)
    if tag == "mfenced":
        separator = (element.get("separators") or ",").strip()[:1] or ""
        return (element.get("open") or "(") + separator.join(parts) + (element.get("close") or ")")
    return None


_INVISIBLE_OPERATORS = {"\u2061": "", "\u2062": "", "\u2063": ",", "\u2064": "+"}


def _operator(text: str) -> str:
    text = _INVISIBLE_OPERATORS.get(text, text)
    return f" {text} " if text in ("=", "<", ">", "≤", "≥", "≈", "≠", "±", "×", "∈", "→", "∼") else text


def _over(parts: list[str]) -> str:
    base, accent = parts
    return base if accent.strip() in ("¯", "^", "~", "˜", "→", "˙", "ˆ", "-", "‾", "_") else f"{base}^{_group(accent)}"


def _group(text: str) -> str:
    text = text.strip()
    return text if re.fullmatch(r"\w*|[-−+]?\w+|\(.*\)", text) and text.count("(") <= 1 else f"({text})"
