"""XML as sources have it: parsers that open nothing, fragments, names of tags and entities."""

import functools
import re
from html.entities import html5

from lxml import etree

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


def local(element) -> str:
    """The tag without its namespace; "" for comments and processing instructions."""
    tag = element.tag
    if not isinstance(tag, str):
        return ""
    return tag if tag[0] != "{" else tag.rpartition("}")[2]


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
