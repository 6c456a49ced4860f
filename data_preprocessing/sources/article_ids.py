"""What an article is known by: its PMCID, else its PMID, else its DOI, else its place in the input.

Two articles with one key are versions of one article; names of files alone say nothing.
"""

import re
from dataclasses import dataclass

_PMCID = re.compile(r"(?:PMC)*(\d{1,12})(?:\.(\d{1,9}))?$", re.ASCII | re.IGNORECASE)
_PMID = re.compile(r"(?:PMID:?\s{0,5})?(\d{1,12})$", re.ASCII | re.IGNORECASE)
_DOI = re.compile(r"(?:https?://(?:dx\.)?doi\.org/|doi:\s{0,5})?(10\.\d{4,9}(?:\.\d{1,9})*/\S{1,500})$", re.IGNORECASE)
_FILE = re.compile(r"(?:^|[/:])PMC(\d{1,12})\.(\d{1,9})\.[a-z]", re.IGNORECASE)  # PMC123.2/PMC123.2.xml


@dataclass(frozen=True)
class Ids:
    """The key of an article, its ids ("" for none), and the version of its PMCID."""

    key: str
    pmcid: str = ""
    pmid: str = ""
    doi: str = ""
    version: int = 1


def identify(pmcid: str, pmid: str, doi: str, place: str, versioned: str = "") -> Ids:
    """Read an article's ids as a source spells them; what is no id (zero, "n/a") counts as none.

    Args:
        place: the article's place in the input, which makes up the key of one without an id, and whose file name may
            give the version (PMC's cloud service).
        versioned: the PMCID with its version ("PMC123.2"), where the source gives that apart.
    """
    found = _PMCID.match(pmcid.strip()) or _PMCID.match(versioned.strip())
    number = int(found[1]) if found else 0
    version = 1
    for other in (found, _PMCID.match(versioned.strip()), _FILE.search(place)):
        if other and other[2] and int(other[1]) == number:
            version = int(other[2])
            break
    named = _PMID.match(pmid.strip())
    pmid = str(int(named[1])) if named and int(named[1]) else ""
    written = _DOI.match(doi.strip())
    doi = written[1].lower() if written else ""
    pmcid = f"PMC{number}" if number else ""
    key = pmcid or (f"pmid:{pmid}" if pmid else f"doi:{doi}" if doi else f"file:{place}")
    return Ids(key, pmcid, pmid, doi, version)
