"""Inline markup to readable text: italics vanish, superscripts and formulas stay legible, white space is one blank."""

import re
import unicodedata

from data_preprocessing.text.document import restore_cp1252
from data_preprocessing.text.mathml import math_text
from data_preprocessing.text.xml import local, read_entity

_SUPERSCRIPT = str.maketrans("0123456789+-−=()ni", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁼⁽⁾ⁿⁱ")
_SUBSCRIPT = str.maketrans("0123456789+-−=()", "₀₁₂₃₄₅₆₇₈₉₊₋₋₌₍₎")
_NUMBER = re.compile(r"[-−+–]?\d+([.,]\d+)?$")
# Soft hyphens, zero-width marks, byte-order marks and controls carry no text.
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u2064\ufeff\ufff9-\ufffb\x00-\x08\x0e-\x1f\x7f-\x9f]")
FORMULA_EDGE = "\x05"  # around a formula, until `tidy` knows what is next to it
_AFTER_FORMULA = re.compile(r"\s*[,;:.?!)\]}](?!\d)")


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
