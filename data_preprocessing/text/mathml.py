"""MathML as linear text: (a+b)/c, x_i^2, sqrt(x)."""

import re
from itertools import zip_longest

from data_preprocessing.text.xml import local

_MATH_UNSEEN = ("annotation", "annotation-xml", "mphantom", "maligngroup", "malignmark", "")
_MATH_TOKENS = ("mi", "mn", "mo", "mtext", "ms", "ci", "cn")
_INVISIBLE_OPERATORS = {"\u2061": "", "\u2062": "", "\u2063": ",", "\u2064": "+"}
_SINGLE = re.compile(r"[\w\u0300-\u036f\u20d7]*|[-−+]?[\w\u0300-\u036f\u20d7]+|\(.*\)")
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


def _operator(text: str) -> str:
    text = _INVISIBLE_OPERATORS.get(text, text)
    return f" {text} " if text in ("=", "<", ">", "≤", "≥", "≈", "≠", "±", "×", "∈", "→", "∼") else text


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
