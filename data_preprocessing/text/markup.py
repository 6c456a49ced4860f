"""Inline markup to readable text: italics vanish, superscripts and formulas stay legible, white space is one blank."""

import functools
import re
import unicodedata
from html.entities import html5
from itertools import zip_longest

from lxml import etree

from data_preprocessing.text.document import restore_cp1252

_SUPERSCRIPT = str.maketrans("0123456789+-−=()ni", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁼⁽⁾ⁿⁱ")
_SUBSCRIPT = str.maketrans("0123456789+-−=()", "₀₁₂₃₄₅₆₇₈₉₊₋₋₌₍₎")
_NUMBER = re.compile(r"[-−+–]?\d+([.,]\d+)?$")
# Soft hyphens, zero-width marks, byte-order marks and controls carry no text.
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u2064\ufeff\ufff9-\ufffb\x00-\x08\x0e-\x1f\x7f-\x9f]")
FORMULA_EDGE = "\x05"  # around a formula, until `tidy` knows what is next to it
_AFTER_FORMULA = re.compile(r"\s*[,;:.?!)\]}](?!\d)")
_FRAME = b'<x xmlns:mml="http://www.w3.org/1998/Math/MathML">%b</x>'
_ENTITY = re.compile(rb"<!\[CDATA\[(?:.*?\]\]>|.*+)|&([A-Za-z][A-Za-z0-9]{0,40});", re.S)
_PREDEFINED = (b"amp", b"lt", b"gt", b"quot", b"apos")
_PARSER = {"resolve_entities": False, "no_network": True, "load_dtd": False, "huge_tree": False}


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
        raise ValueError((e.msg or "not well-formed").partition(", line ")[0]) from None  # of the frame's lines


def _number_entity(found: re.Match[bytes]) -> bytes:
    """&eacute; and the like, which only the unread DTD declares, as numeric references."""
    characters = html5.get(found[1].decode() + ";") if found[1] and found[1] not in _PREDEFINED else None
    return found[0] if characters is None else b"".join(b"&#%d;" % ord(c) for c in characters)


@functools.cache  # one costs as much as what it parses
def _fragment_parser() -> etree.XMLParser:
    return hardened_parser(remove_comments=True, remove_pis=True, encoding="utf-8")


def tidy(text: str) -> str:
    """NFC, one blank for any run of white space, no invisible characters; C1 controls as what they were in cp1252."""
    if text.isprintable():
        return tidy_printable(text)
    if FORMULA_EDGE in text:
        text = _space_formulas(text)
    flat = text.replace("\n", " ").replace("\xa0", " ").replace("\u2009", " ").replace("\u200a", " ")
    if flat.isprintable():  # so it holds no invisible character, and no blank but " "
        return tidy_printable(flat)
    if not text.isascii():
        text = restore_cp1252(text)
        text = _INVISIBLE.sub(lambda m: " " if m[0] in "\u2028\u2029" else "", text)
        text = unicodedata.normalize("NFC", text)
    else:
        text = _INVISIBLE.sub("", text)
    return " ".join(text.split())


def tidy_printable(text: str) -> str:
    """The same, where `text.isprintable()`: what is white space in it are blanks, and all is visible."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return " ".join(text.split()) if "  " in text else text.strip()


def _space_formulas(text: str) -> str:
    """Formulas apart from the words around them, close to brackets, punctuation and a word they are a script of."""
    first, *rest = text.split(FORMULA_EDGE)
    out, last = [first], first[-1:]
    for formula, after in zip(rest[::2], rest[1::2], strict=True):
        if formula:
            apart = last.isalnum() or (last != "" and last in ",.;:)]%")
            out.append(" " + formula if apart and formula[0] not in "_^" else formula)
            last = formula[-1]
        if after:
            if _AFTER_FORMULA.match(after):
                after = after.lstrip()
            elif after[0].isalnum():
                after = " " + after
            out.append(after)
            last = after[-1]
    return "".join(out)


def local(element) -> str:
    """The tag without its namespace; "" for comments and processing instructions."""
    tag = element.tag
    if not isinstance(tag, str):
        return ""
    return tag if tag[0] != "{" else tag.rpartition("}")[2]


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
_ESCAPED = re.compile(rf"<({_INLINE})(?:\s[^<>]{{0,200}})?>((?:[^<]|<(?!/?(?:{_INLINE})[\s>]))*+)</\1\s{{0,20}}>", re.I)
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
                out.append(FORMULA_EDGE + math_text(child).strip() + FORMULA_EDGE)
            elif tag in ("sup", "sub"):
                append_script(out, tag, render(child, style, special), style)
            elif tag in ("break", "br"):
                out.append(" ")
            else:
                _walk(child, style, special, out)
        else:
            out.append(read_entity(child))
        if child.tail:
            out.append(child.tail)


def append_script(out: list[str], tag: str, inner: str, style: str) -> None:
    """Append the text of a <sup> or <sub>."""
    # A line break before a script is a pretty-printer's (efetch): the script belongs to the word before.
    if out and "\n" in out[-1][len(out[-1].rstrip()) :]:
        out[-1] = out[-1].rstrip()
    out.append(script(inner, "".join(out[-3:]), tag, style))


def read_entity(node) -> str:
    """The character of an entity that only the unread DTD declares, &eacute; and the like; "" for other nodes.

    Raises:
        ValueError: there is no such entity.
    """
    if node.tag is not etree.Entity:
        return ""
    text = html5.get(node.name + ";")
    if text is None:
        raise ValueError(f"undefined entity {node.text}")
    return text


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
    for layout in (
        _fraction_or_root(tag, parts),
        _scripts(tag, parts),
        _multiscripts(kids, parts) if tag == "mmultiscripts" else None,
        _table_or_fence(element, tag, parts),
    ):
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
    if tag in ("mover", "munder") and len(parts) == 2:
        return _accent(tag, *parts)
    if tag == "msup" and len(parts) == 2:
        return f"{_group(parts[0])}{_script('^', parts[1])}"
    if tag == "msub" and len(parts) == 2:
        return f"{parts[0]}{_script('_', parts[1])}"
    if tag in ("msubsup", "munderover") and len(parts) == 3:
        return f"{parts[0]}{_script('_', parts[1])}{_script('^', parts[2])}"
    return None


def _script(mark: str, text: str) -> str:
    return mark + _group(text) if text.strip() else ""


def _multiscripts(kids: list, parts: list[str]) -> str:
    """Scripts on both sides of a base: ^14_6C, x_i^2."""
    begin = next((k for k, kid in enumerate(kids) if local(kid) == "mprescripts"), len(kids))
    after, before = parts[1:begin], parts[begin + 1 :]
    right = (_script("_", sub) + _script("^", sup) for sub, sup in zip_longest(after[::2], after[1::2], fillvalue=""))
    left = (_script("^", sup) + _script("_", sub) for sub, sup in zip_longest(before[::2], before[1::2], fillvalue=""))
    return "".join([*left, *parts[:1], *right])


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


# Accents: the combining character for one letter, the name for more: x̄, hat(AB).
_OVER = {
    **dict.fromkeys("¯‾ˉ-−–—_\u0304\u0305", ("\u0304", "bar")),
    **dict.fromkeys("^ˆ\u0302", ("\u0302", "hat")),
    **dict.fromkeys("~˜∼\u0303", ("\u0303", "tilde")),
    **dict.fromkeys("˙.·\u0307", ("\u0307", "dot")),
    **dict.fromkeys(("¨", "..", "\u0308"), ("\u0308", "ddot")),
    **dict.fromkeys("→⃗", ("\u20d7", "vec")),
    **dict.fromkeys("ˇ\u030c", ("\u030c", "check")),
    **dict.fromkeys("⌒⏜", ("\u0311", "arc")),
}
_UNDER = {
    **dict.fromkeys("_¯‾ˉ-−–—\u0331\u0332", ("\u0332", "underline")),
    **dict.fromkeys("~˜∼\u0330", ("\u0330", "undertilde")),
}
_BRACES = ("⏞", "⏟", "︷", "︸")


def _accent(tag: str, base: str, accent: str) -> str:
    accent = accent.strip()
    known = (_OVER if tag == "mover" else _UNDER).get(accent)
    if accent in _BRACES or (known and not base):
        return base
    if known is None:
        return base + _script("^" if tag == "mover" else "_", accent)
    return base + known[0] if len(base) == 1 and base.isalnum() else f"{known[1]}({base.strip()})"


def _group(text: str) -> str:
    text = text.strip()
    return text if _SINGLE.fullmatch(text) and text.count("(") <= 1 else f"({text})"


_SINGLE = re.compile(r"[\w\u0300-\u036f\u20d7]*|[-−+]?[\w\u0300-\u036f\u20d7]+|\(.*\)")
