"""A citation set cut into its records by bytes, refusing whatever is neither a record nor the frame around them."""

import re
from collections.abc import Iterator

from modelzoo.config.errors import UserError

ROOTS = (b"PubmedArticleSet", b"MedlineCitationSet", b"PubmedBookArticleSet")
RECORDS = (b"PubmedArticle", b"MedlineCitation", b"PubmedBookArticle", b"DeleteCitation", b"DeleteDocument")
MAX_RECORD = 32 << 20  # bytes; the largest real citation is under 2 MB

_TAG = re.compile(rb"<(/?)([A-Za-z_][\w:.-]*+)")
_SPACE = re.compile(rb"\s*+")


def _match(pattern: re.Pattern[bytes], data: bytes, at: int = 0) -> re.Match[bytes]:
    """What `pattern` finds at `at`, where it cannot but find something."""
    found = pattern.match(data, at)
    assert found is not None
    return found


def cut(chunks: Iterator[bytes], path: str) -> Iterator[tuple[bytes, bytes]]:
    """Split a citation set into (record tag, record bytes), refusing whatever is neither record nor its frame."""
    buffer, pos, root, closed = b"", 0, b"", False
    chunks = iter(chunks)
    more = True
    while more or pos < len(buffer):
        pos = _match(_SPACE, buffer, pos).end()
        end = -1
        if pos < len(buffer):
            end, kind = _token_end(buffer, pos, root, path)
            if end >= 0:
                token = buffer[pos:end]
                pos = end
                if kind == "record":
                    if not root or closed:
                        raise UserError(f"{path}: a record outside the root element; not PubMed citation XML")
                    name = _match(_TAG, token)[2]
                    if (again := token.find(b"<" + name, 1)) >= 0 and token[again + len(name) + 1 :][:1] in b"> ":
                        raise UserError(f"{path}: a record is not closed before the next begins; the file is damaged")
                    yield name, token
                elif kind == "root":
                    root = _match(_TAG, token)[2]
                    closed = token.endswith(b"/>")
                elif kind == "end":
                    closed = True
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


def _token_end(buffer: bytes, pos: int, root: bytes, path: str) -> tuple[int, str]:
    """Where the thing at `pos` ends (-1: not yet in the buffer) and what it is."""
    if tag := _TAG.match(buffer, pos):
        if tag.end() == len(buffer):
            return -1, ""
        close, name = tag[1], tag[2]
        if not close and name in RECORDS:
            end = buffer.find(b"</" + name + b">", tag.end())
            return (end + len(name) + 3, "record") if end >= 0 else (-1, "record")
        if name in ROOTS and (bool(close) == bool(root)) and (not close or name == root):
            return buffer.find(b">", pos) + 1 or -1, "end" if close else "root"
        if name == b"eFetchResult":
            raise UserError(f"{path}: is an efetch error message, not citations; fetch the file again")
        raise UserError(
            f"{path}: unexpected <{close.decode()}{name.decode('utf-8', 'replace')}>: not PubMed citation "
            "XML (expected the root PubmedArticleSet or MedlineCitationSet)"
        )
    if buffer[pos:] in (b"<", b"</"):
        return -1, ""
    for start, end, kind in (
        (b"<!--", b"-->", "comment"),
        (b"<?", b"?>", "instruction"),
        (b"<!DOCTYPE", b">", "doctype"),
    ):
        head = buffer[pos : pos + len(start)]
        if head != start:
            if start.startswith(head):
                return -1, ""
            continue
        found = buffer.find(end, pos + len(start))
        if kind == "doctype" and b"[" in buffer[pos : found if found >= 0 else pos + 4096]:
            raise UserError(f"{path}: its DOCTYPE declares entities of its own; refused (PubMed's files never do)")
        return (found + len(end), kind) if found >= 0 else (-1, kind)
    raise UserError(f"{path}: text outside any record ({buffer[pos : pos + 20]!r}); not PubMed citation XML")
