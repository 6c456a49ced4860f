"""Text of others in Markdown: names, commands and figures that must not become headings, links, tables or HTML.

    f"- fine-tuned from {code(path)} on {escape(task)}"

Every character that could begin markup becomes a numeric entity, which CommonMark (0.31, section 2.5) never takes for
structure, and HTML parsers show as the character. So the result is inert in both.
"""

import unicodedata

MOST = 500  # characters of one piece
_ALWAYS = frozenset("&<>\"'`*[]\\|~#$^{}@\x7f")


def escape(text: object, most: int = MOST) -> str:
    """`text` as one line of plain words, for running text and cells of tables."""
    line = _line(text, most)
    return "".join(_entity(c) if _is_markup(line, i) else c for i, c in enumerate(line))


def code(text: object, most: int = MOST) -> str:
    """`text` as one line of code, in backticks where that is safe everywhere, else as an escaped <code> element."""
    line = _line(text, most)
    if line and not set(line) & set("`<>&|"):
        return f"`{line}`"
    return f"<code>{''.join(c if c.isalnum() or c in ' ,/=' else _entity(c) for c in line)}</code>"


def _line(text: object, most: int) -> str:
    """One line, without characters that control a terminal or the direction of writing."""
    kept = (" " if c.isspace() else c for c in str(text) if c.isspace() or unicodedata.category(c)[0] != "C")
    line = " ".join("".join(kept).split())
    return line if len(line) <= most else line[: most - 1] + "…"


def _is_markup(line: str, i: int) -> bool:
    c = line[i]
    if c in _ALWAYS:
        return True
    if c == "_":  # inside a word it is no emphasis, and names are full of it
        return not (0 < i < len(line) - 1 and line[i - 1].isalnum() and line[i + 1].isalnum())
    if i == 0 and c in "-+=:":  # a list, a rule, an underlined heading
        return True
    return (c == ":" and line[i + 1 : i + 3] == "//") or (c == "." and line[max(0, i - 3) : i].lower() == "www")


def _entity(c: str) -> str:
    return f"&#{ord(c)};"
