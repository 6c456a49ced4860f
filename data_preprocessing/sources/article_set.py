"""An XML file cut into its JATS articles by bytes, so that one of any size is read in the memory of one article.

Europe PMC's files hold ten thousand articles in <articles>, efetch's <pmc-articleset>, OAI-PMH's one in each record.
"""

import re
from collections.abc import Iterator

from data_preprocessing.sources.window import Window
from modelzoo.config.errors import UserError

MAX_ARTICLE = 128 << 20  # bytes of one article's XML
WHOLE = 4 << 20  # bytes of a file that is not worth cutting where it holds one article
MAX_TAG = 1 << 20
MAX_DEPTH = 100  # of tags around an article
_NAME = rb"(?:[\w.-]{1,100}:)?article"
_OUTSIDE = re.compile(rb"<(?:!--|!\[CDATA\[|\?|!DOCTYPE|[^\s!?<>])")
_INSIDE = re.compile(rb"<(?:!--|!\[CDATA\[|\?|/?" + _NAME + rb"(?=[\s/>]))")
_ENDS = {b"<!--": b"-->", b"<![CDATA[": b"]]>", b"<?": b"?>"}
_TAG = re.compile(rb"""<(/?)([^\s/<>"']++)(?:[^"'<>]++|"[^"]*+"|'[^']*+')*+>""")
_DOCTYPE = re.compile(rb"""<!DOCTYPE(?:[^>\["']++|"[^"]*+"|'[^']*+')*+([>\[])""")
_ARTICLE = re.compile(_NAME)
_CLOSE = re.compile(rb"article\s*+>")  # or something longer: cutting is never wrong, only slower
_LONGEST = 128  # bytes that the beginning of a token may have without its end


def cut(chunks: Iterator[bytes], path: str) -> Iterator[bytes | ValueError]:
    """Each article, as an XML file of its own: with the file's DOCTYPE, and inside of the tags that it was inside of.

    Args:
        chunks: the file in UTF-8.
        path: for messages.

    Yields:
        The article's bytes, or why there are none: it is larger than MAX_ARTICLE, and never held, or tags around
            articles do not fit, as where an article's first tag is damaged. A small file with one article at most comes
            as it is, whatever it holds.

    Raises:
        UserError: the file ends inside of the tags around its articles, or declares entities of its own.
    """
    head = bytearray()
    for chunk in chunks:
        head += chunk
        if len(head) > WHOLE:
            break
    else:
        first = _CLOSE.search(head)
        if first is None or _CLOSE.search(head, first.end()) is None:
            yield bytes(head)
            return
    yield from _Cutter(head, chunks, path).articles()


class _Cutter(Window):
    """The bytes that are still to be cut, and the tags that are open where they begin."""

    def __init__(self, head: bytearray, rest: Iterator[bytes], path: str):
        super().__init__(rest, MAX_ARTICLE, head)
        self.path, self.inside = path, False  # of an article
        self.doctype = b""
        self.around: list[tuple[bytes, bytes]] = []  # (name, start tag) of the tags that are open
        self.level = 1  # tags around the last article
        self.misfit = ""  # what does not fit around articles, since the last of them

    def articles(self) -> Iterator[bytes | ValueError]:
        while (token := self._find(_OUTSIDE)) is not None:
            if token in _ENDS:
                self._pass(token)
            elif token == b"<!DOCTYPE":
                doctype = self._match(_DOCTYPE)
                if doctype is None or doctype[1] == b"[":
                    raise UserError(
                        f"{self.path}: its DOCTYPE declares entities of its own; refused (PMC's files never do)"
                    )
                self.doctype = bytes(doctype[0])
                self.at = doctype.end()
            elif (tag := self._match(_TAG)) is None:
                self.misfit = "a tag without an end"
                self.at += len(token)
            elif not tag[1] and _ARTICLE.fullmatch(tag[2]):
                yield from self._list_misfit()
                yield self._take_article()
            else:
                self._enter(tag)
        yield from self._list_misfit()
        if self.around:
            name = self.around[-1][0].decode("utf-8", "replace")[:40]
            raise UserError(f"{self.path}: </{name}> is missing (a truncated file); fetch the file again")

    def _list_misfit(self) -> Iterator[ValueError]:
        if self.misfit:
            yield ValueError(f"broken XML around articles: {self.misfit}")
            self.misfit = ""

    def _enter(self, tag: re.Match[bytes]) -> None:
        """Note a tag that opens or closes around articles."""
        name, whole = bytes(tag[2]), bytes(tag[0])
        if tag[1]:
            if not self.around or self.around[-1][0] != name:
                self.misfit = f"</{name.decode('utf-8', 'replace')[:40]}> closes what is not open"
            if name in (opened for opened, _ in self.around):
                while self.around.pop()[0] != name:
                    pass
            elif _ARTICLE.fullmatch(name):  # its first tag is damaged: what came after that is not around the next
                del self.around[self.level :]
        elif not whole.endswith(b"/>"):
            self.around.append((name, whole))
            if len(self.around) > MAX_DEPTH:
                raise UserError(f"{self.path}: over {MAX_DEPTH} tags around an article; no file of articles")
        self.at = tag.end()

    def _take_article(self) -> bytes | ValueError:
        """The article that begins here, with what is around it."""
        self.drop(self.at)
        self.inside = self.holding = True
        self.level = len(self.around)
        begun = False
        while True:
            token = self._find(_INSIDE)
            if token is None:
                if self.around:
                    raise UserError(f"{self.path}: its last article is cut off (a truncated file); fetch it again")
                self.at = len(self.buffer)  # the parser will say what is wrong with it
                break
            if token in _ENDS:
                self._pass(token)
            elif (tag := self._match(_TAG)) is None:
                self.at += len(token)
            else:
                empty = tag[0].endswith(b"/>")
                if begun and not tag[1] and not empty:  # the one before has no end; the parser will say so
                    break
                self.at = tag.end()
                if tag[1] or (empty and not begun):
                    break
                begun = True
        article = bytes(self.buffer[: self.at]) if self.holding and self.at <= MAX_ARTICLE else None
        self.inside = self.holding = False
        if article is None:
            return ValueError(f"larger than {MAX_ARTICLE >> 20} MB; refused as an article")
        before = b"".join(tag for _, tag in self.around)
        after = b"".join(b"</" + name + b">" for name, _ in reversed(self.around))
        return self.doctype + before + article + after

    def _find(self, pattern: re.Pattern[bytes]) -> bytes | None:
        """Go to the next token that the pattern finds; None, at the end of the file, where there is none."""
        while (found := pattern.search(self.buffer, self.at)) is None:
            self._skip(max(self.at, len(self.buffer) - _LONGEST))
            if not self.read_on():
                self._skip(len(self.buffer))
                return None
        self._skip(found.start())
        token = bytes(found[0])
        return token if token in _ENDS or token == b"<!DOCTYPE" else b"<"

    def _skip(self, to: int) -> None:
        """Pass over text; outside of everything there is none."""
        if not (self.around or self.inside) and self.buffer[self.at : to].strip():
            raise UserError(f"{self.path}: text outside of any tag; the file is damaged, or no file of articles")
        self.at = to

    def _match(self, pattern: re.Pattern[bytes]) -> re.Match[bytes] | None:
        """What the pattern finds here, read on for as long as it may yet end; None where it cannot."""
        while (found := pattern.match(self.buffer, self.at)) is None:
            if len(self.buffer) - self.at > MAX_TAG or not self.read_on():
                return None
        return found

    def _pass(self, token: bytes) -> None:
        """Go past the end of the comment, CDATA section or instruction that begins here, or to the end of the file."""
        self.at += len(token)
        if token == b"<!--":
            self._pass_comment()
            return
        end = _ENDS[token]
        while (found := self.buffer.find(end, self.at)) < 0:
            self.at = max(self.at, len(self.buffer) - len(end) + 1)
            if not self.read_on():
                self.at = len(self.buffer)
                return
        self.at = found + len(end)

    def _pass_comment(self) -> None:
        """The same for a comment. One that has no end, or holds `--`, is gone into, for it may hide articles."""
        size = 0
        while size <= MAX_TAG:
            found = self.buffer.find(b"--", self.at + size)
            size = max(0, (len(self.buffer) - 1 if found < 0 else found) - self.at)
            if found >= 0 and found + 2 < len(self.buffer):
                if self.buffer[found + 2 : found + 3] == b">":
                    self.at = found + 3
                    return
                break
            if not self.read_on():
                break
        if not self.inside:
            self.misfit = "a comment without an end"
