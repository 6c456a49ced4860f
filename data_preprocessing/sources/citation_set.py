"""Citation sets cut into their records by bytes, refusing whatever is neither a record nor the frame around them."""

import re
from collections.abc import Iterator

from modelzoo.config.errors import UserError

ROOTS = (b"PubmedArticleSet", b"MedlineCitationSet", b"PubmedBookArticleSet")
RECORDS = (b"PubmedArticle", b"MedlineCitation", b"PubmedBookArticle", b"DeleteCitation", b"DeleteDocument")
UNCLOSED = b""  # the tag of a record that is not closed before the next begins
MAX_RECORD = 32 << 20  # bytes; the largest real citation is under 2 MB
UTF8 = ("utf-8", "utf8", "us-ascii", "ascii")

_TAG = re.compile(rb"<(/?)([A-Za-z_][\w:.-]*+)")
_TAG_END = re.compile(rb"""(?:[^<>"']++|"[^"<]*+"|'[^'<]*+')*+>""")
_SPACE = re.compile(rb"(?:\s++|\xef\xbb\xbf)*+")  # of files that were joined, each may have a byte-order mark
_DOCTYPE = re.compile(rb"""<!DOCTYPE(?:[^>\["']++|"[^"]*+"|'[^']*+')*+([>\[])?""")
_DECLARED = re.compile(rb"""<\?xml\s[^>]*?\bencoding\s*=\s*["']([^"'>]*)""")
_STEPS = {  # what may hide tags, from its begin to its end, and the record's name in a tag
    name: re.compile(rb"<(?:!--(?:.*?(-->))?|!\[CDATA\[(?:.*?(\]\]>))?|\?(?:.*?(\?>))?|(/?)%b(?=[\s/>]))" % name, re.S)
    for name in RECORDS
}


def cut(chunks: Iterator[bytes], path: str) -> Iterator[tuple[bytes, bytes]]:
    """Split citation sets, of which several may follow one another, into (record tag or UNCLOSED, record bytes).

    Raises:
        UserError: something is neither a record nor the frame of one, or the file is cut off.
    """
    buffer, pos, root, closed, encoding = b"", 0, b"", False, ""
    chunks = iter(chunks)
    more = True
    while more or pos < len(buffer):
        pos = _match(_SPACE, buffer, pos).end()
        end, kind = _token_end(buffer, pos, path) if pos < len(buffer) else (-1, b"")
        if end >= 0:
            token = buffer[pos:end]
            pos = end
            if kind in RECORDS or kind == UNCLOSED:
                if not root or closed:
                    raise UserError(f"{path}: a record outside the root element; not PubMed citation XML")
                yield kind, token
            elif kind in ROOTS:
                closing = token.startswith(b"</")
                _check_order(kind, closing, root if not closed else b"", path)
                root, closed, encoding = kind, closing or token.endswith(b"/>"), encoding or "utf-8"
            elif kind == b"<?":
                encoding = _check_encoding(token, encoding, path)
            continue
        if not more:
            if pos < len(buffer):
                raise UserError(f"{path}: the last record or tag is cut off (a truncated file); fetch the file again")
            break
        if len(buffer) - pos > MAX_RECORD:
            raise UserError(f"{path}: a record is larger than {MAX_RECORD >> 20} MB; not PubMed citation XML")
        chunk = next(chunks, b"")
        more = bool(chunk)
        buffer, pos = buffer[pos:] + chunk, 0
    if not closed:
        what = (
            f"</{root.decode()}> is missing (a truncated file); fetch the file again"
            if root
            else "no PubMed citation XML in it (expected the root PubmedArticleSet or MedlineCitationSet)"
        )
        raise UserError(f"{path}: {what}")


def _match(pattern: re.Pattern[bytes], data: bytes, at: int = 0) -> re.Match[bytes]:
    """What `pattern` finds at `at`, where it cannot but find something."""
    found = pattern.match(data, at)
    assert found is not None
    return found


def _check_order(root: bytes, closing: bool, inside: bytes, path: str) -> None:
    """Refuse an end tag of a set that was not begun, and a set inside another."""
    if closing and root != inside:
        raise UserError(f"{path}: unexpected </{root.decode()}>: no such element is open; the file is damaged")
    if not closing and inside:
        raise UserError(
            f"{path}: <{root.decode()}> begins before </{inside.decode()}>: files were joined of which one is truncated"
        )


def _check_encoding(instruction: bytes, encoding: str, path: str) -> str:
    """The encoding of the first document, in which all others must be too; others' instructions change nothing."""
    if not instruction.startswith((b"<?xml ", b"<?xml\t", b"<?xml\r", b"<?xml\n")):
        return encoding
    declared = _DECLARED.match(instruction)
    name = declared[1].decode("ascii", "replace").lower() if declared else "utf-8"
    name = "utf-8" if name in UTF8 else name
    if encoding and name != encoding:
        raise UserError(f"{path}: holds documents in {encoding} and in {name}; give them as files of their own")
    return name


def _token_end(buffer: bytes, pos: int, path: str) -> tuple[int, bytes]:
    """Where the thing at `pos` ends (-1: not yet in the buffer), and which element or kind it is."""
    if tag := _TAG.match(buffer, pos):
        close, name = tag.groups()
        if tag.end() == len(buffer):
            return -1, b""
        if name in RECORDS and not close:
            return _record_end(buffer, pos, tag.end(), name)
        if name in ROOTS:
            found = _TAG_END.match(buffer, tag.end())
            return found.end() if found else -1, name
        if name == b"eFetchResult":
            raise UserError(f"{path}: is an efetch error message, not citations; fetch the file again")
        raise UserError(
            f"{path}: unexpected <{close.decode()}{name.decode('utf-8', 'replace')}>: not PubMed citation "
            "XML (expected the root PubmedArticleSet or MedlineCitationSet)"
        )
    if buffer[pos:] in (b"<", b"</", b"\xef", b"\xef\xbb"):
        return -1, b""
    for start, end in ((b"<!--", b"-->"), (b"<?", b"?>"), (b"<!DOCTYPE", b"")):
        head = buffer[pos : pos + len(start)]
        if head != start:
            if start.startswith(head):
                return -1, b""
            continue
        if end:
            found = buffer.find(end, pos + len(start))
            return (found + len(end) if found >= 0 else -1), start
        doctype = _match(_DOCTYPE, buffer, pos)
        if doctype[1] == b"[":
            raise UserError(f"{path}: its DOCTYPE declares entities of its own; refused (PubMed's files never do)")
        return doctype.end() if doctype[1] else -1, start
    raise UserError(f"{path}: text outside any record ({buffer[pos : pos + 20]!r}); not PubMed citation XML")


def _record_end(buffer: bytes, pos: int, at: int, name: bytes) -> tuple[int, bytes]:
    """Where the record at `pos` ends, whose name ends at `at`; UNCLOSED where another begins in it."""
    found = buffer.find(name, at)
    if found >= 0 and buffer.startswith(b"</" + name + b">", found - 2):  # the usual record names itself twice
        end = found + len(name) + 1
        if not _may_hide(buffer, pos, end):
            return end, name
    start = _TAG_END.match(buffer, at)
    if not start:
        return -1, name
    if buffer[start.end() - 2 : start.end() - 1] == b"/":
        return start.end(), name
    for step in _STEPS[name].finditer(buffer, start.end()):
        if step[4] is None:
            if not step[1] and not step[2] and not step[3]:
                return -1, name  # a comment whose end is not in the buffer
        elif step[4] == b"":
            return step.start(), UNCLOSED
        else:
            end = _TAG_END.match(buffer, step.end())
            return end.end() if end else -1, name
    return -1, name


def _may_hide(buffer: bytes, pos: int, end: int) -> bool:
    """Whether comments, CDATA or instructions may hold tags; the rarer byte is looked for first, which is fast."""
    return (buffer.find(b"!", pos, end) >= 0 and buffer.find(b"<!", pos, end) >= 0) or (
        buffer.find(b"?", pos, end) >= 0 and buffer.find(b"<?", pos, end) >= 0
    )
