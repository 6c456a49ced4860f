"""Citation sets and articles that are well-formed and odd, and such as are broken; one record of a file at a time."""

import re
from random import Random

TEXTS = (
    "", " ", "\n", "0", "-1", "²", "１２", "١٢", "1" * 40, "19999", "99999999999999999999", "2024²", "0000", "é",
    "\u202eabc",
    "💥", "&lt;script&gt;alert(1)&lt;/script&gt;", "&#0;", "&#x110000;", "&#xD800;", "&nbsp;", "&undefined;",
    "&amp;amp;",
    "&lt;", "&#60;PMID&#62;", "]]>", "\x00", "\x0b", "\ufffe", "\ufeff", "--", "<", ">", "&", "&;", "a" * 20000,
    "]]&gt;",
    "<![CDATA[<PMID>1</PMID>]]>", "<!-- <PMID>1</PMID> -->", "<?pi <PMID>1</PMID> ?>", "<x/>", "<x>", "</x>",
    "<i>" * 300 + "</i>" * 300,
    "<i><b>" * 20 + "x" + "</b></i>" * 20, "<sup>" * 60 + "1" + "</sup>" * 60, "[" * 2000, "(see " * 800,
    "[1, 2; " * 500,
    "<xref ref-type='bibr'>1</xref>, " * 60 + "x", "[<xref ref-type='bibr'>1</xref>" + "-" * 200 + "x",
    "<math xmlns='http://www.w3.org/1998/Math/MathML'>" + "<mfrac><mi>a</mi>" * 40 + "</mfrac>" * 40 + "</math>",
    "<xi:include xmlns:xi='http://www.w3.org/2001/XInclude' href='/etc/passwd' parse='text'/>",
)  # fmt: skip
NAMES = (
    "x",
    "PMID",
    "Article",
    "Abstract",
    "PubDate",
    "article",
    "p",
    "sec",
    "front",
    "math",
    "sup",
    "é",
    "A" * 300,
    "x:y",
    "1",
    "",
)
ATTRIBUTES = (
    'x="1"', "x='1'", 'x = "1"', 'Version="²"', 'Version="99999999999999999999"', 'Version=""', 'Version="-1"',
    'xmlns="urn:x"',
    'xmlns:mml="urn:y"', 'x="&lt;"', 'x="<"', 'x="a" x="b"', "x", 'x="' + "y" * 5000 + '"', 'x=">"', 'xml:lang="²"',
    'Label="&#0;"', 'IdType="pmc"', 'pub-id-type="pmid"',
)  # fmt: skip
CODECS = (
    "utf-8", "UTF-8", "utf-16", "utf-16-le", "utf-32", "iso-8859-1", "latin1", "windows-1252", "ascii", "utf-7",
    "cp037", "shift_jis",
    "big5", "rot13", "rot_13", "hex", "base64", "bz2", "zlib", "zip", "uu", "quopri", "punycode", "idna",
    "unicode_escape",
    "raw_unicode_escape", "undefined", "mbcs", "oem", "palmos", "utf_8_sig", "unknown-1", "../../x", "x" * 3000, "",
)  # fmt: skip
_TAG = re.compile(rb"<(?P<close>/?)(?P<name>[A-Za-z_][\w:.-]*)(?P<attributes>[^<>]{0,500}?)(?P<empty>/?)>")
_TEXT = re.compile(rb">(?P<text>[^<>]*)<")
_ELEMENT = re.compile(rb"<(?P<name>[A-Za-z_][\w:.-]*)(?:\s[^<>]*)?>[^<>]*</(?P=name)>")


def mutate_record(record: bytes, draw: Random) -> bytes:
    """One record (or article) that differs from `record` in one place; it may be no XML any more."""
    for _ in range(100):
        found = _mutate(record, draw)
        if found != record:
            return found
    raise AssertionError("no mutant found")


def _replace(data: bytes, m: re.Match[bytes], new: bytes, group: str | int = 0) -> bytes:
    return data[: m.start(group)] + new + data[m.end(group) :]


def _mutate(data: bytes, draw: Random) -> bytes:
    tags = list(_TAG.finditer(data))
    kind = draw.randrange(12)
    m = draw.choice(tags)
    odd = draw.choice(TEXTS).encode("utf-8", "surrogatepass")
    if kind < 3:  # other text
        texts = list(_TEXT.finditer(data))
        return _replace(data, draw.choice(texts), odd, "text")
    if kind == 3:  # a tag is gone, or twice
        return _replace(data, m, draw.choice((b"", m[0] * 2)))
    if kind == 4:  # a tag has another name
        name = draw.choice((*NAMES, m["name"].decode().lower(), m["name"].decode() + "s")).encode()
        return _replace(data, m, name, "name")
    if kind == 5:  # both tags of an element do
        name = draw.choice(NAMES).encode()
        return re.sub(rb"(</?)%s(?=[\s/>])" % re.escape(m["name"]), lambda found: found[1] + name, data)
    if kind == 6:  # attributes
        return _replace(
            data, m, draw.choice((b"", b" " + draw.choice(ATTRIBUTES).encode(), b"\n", b" /")), "attributes"
        )
    if kind == 7:  # an element is gone, or many times there
        elements = list(_ELEMENT.finditer(data))
        e = draw.choice(elements)
        return _replace(data, e, draw.choice((b"", e[0] * 2, e[0] * 50, b"<x>" + e[0] + b"</x>")))
    if kind == 8:  # something between
        at = draw.choice(tags).end()
        return data[:at] + odd + data[at:]
    if kind == 9:  # elements in another order
        elements = list(_ELEMENT.finditer(data))
        a, b = sorted(draw.sample(elements, 2), key=lambda e: e.start()) if len(elements) > 1 else (elements[0],) * 2
        return data[: a.start()] + b[0] + data[a.end() : b.start()] + a[0] + data[b.end() :]
    if kind == 10:  # bytes that are no UTF-8
        at = draw.randrange(len(data))
        return (
            data[:at]
            + draw.choice((b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\0"))
            + data[at + draw.randrange(2) :]
        )
    at = draw.randrange(len(data))  # any byte
    return data[:at] + bytes([draw.choice(b"<>&\"'=/!?[]-; \n0aA")]) + data[at + draw.randrange(2) :]


def mutate_citations(head: bytes, records: list[bytes], tail: bytes, draw: Random) -> tuple[bytes, int | None]:
    """A citation set with one record mutated, or its frame (then the number is None).

    Args:
        head: what stands before the first record; tail: after the last.
    """
    if draw.random() < 0.8:
        at = draw.randrange(len(records))
        new = mutate_record(records[at], draw)
        return b"".join([head, *records[:at], new, *records[at + 1 :], tail]), at
    body = b"".join(records)
    found = head + body + tail
    while found == head + body + tail:  # some codecs write ASCII as it is
        found = mutate_frame(head, body, tail, draw)
    return found, None


def mutate_frame(head: bytes, body: bytes, tail: bytes, draw: Random) -> bytes:
    """What is around the records is other: the declaration and its codec, a DOCTYPE, root, comments, the end."""
    plain = re.sub(rb"^\s*<\?xml[^>]*\?>", b"", head)
    kind = draw.randrange(9)
    if kind < 3:
        codec = draw.choice(CODECS)
        text = f'<?xml version="1.0" encoding="{codec}"?>'.encode() + plain + body + tail
        if draw.random() < 0.5:
            try:
                return text.decode().encode(codec)
            except (LookupError, UnicodeError, TypeError, AttributeError, ValueError):
                pass
        return text
    doctypes = (
        b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>',
        b'<!DOCTYPE x [<!ENTITY % p SYSTEM "http://127.0.0.1:9/">%p;]>',
        b'<!DOCTYPE x SYSTEM "http://127.0.0.1:9/x.dtd">', b'<!DOCTYPE x PUBLIC "[" "]">', b"<!DOCTYPE x",
        b"<!DOCTYPE x [",
        b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>',
    )  # fmt: skip
    if kind == 3:
        return draw.choice(doctypes) + plain + body + tail
    if kind == 4:
        return (
            head
            + draw.choice((b"<!-- x -->", b"<!--", b"<!-- -- -->", b"<?x?>", b"<?x", b"text", b"<x/>", b"&lt;", b"\0"))
            + body
            + tail
        )
    if kind == 5:
        return (
            head
            + body
            + draw.choice(
                (b"", tail[:-1], tail * 2, tail + body, tail + b"text", b"<", tail + b"\0" * 512, tail + head)
            )
        )
    if kind == 6:
        return (
            draw.choice((b"\xef\xbb\xbf" * 2, b"\xff\xfe", b"\xfe\xff", b" ", b"\0", b"x", b"\x1f\x8b"))
            + head
            + body
            + tail
        )
    if kind == 7:
        return (plain + body + tail).decode().encode(draw.choice(("utf-16", "utf-16-le", "utf-32", "utf-7")))
    return draw.choice((b"", b" ", b"<", head, tail, body, head + tail, head + body, body + tail))
