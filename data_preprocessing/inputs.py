"""Which files a job reads, in which order, grouped into units of work."""

import os
import re
import stat

from modelzoo.config.errors import UserError

SUFFIXES = {
    "pubmed": (".xml", ".xml.gz"),
    "pmc": (".nxml", ".xml", ".nxml.gz", ".xml.gz", ".tar", ".tar.gz", ".tgz"),
    "jsonl": (".jsonl", ".jsonl.gz", ".txt", ".txt.gz"),
}
_NLM = re.compile(r"(?:pubmed|medline)(\d\d)n(\d{4,})\.xml(\.gz)?$")
_DIGITS = re.compile(r"(\d+)")


def find(paths: tuple[str, ...], source: str) -> list[dict]:
    """[{"path", "name", "bytes"}] in reading order. A name is the path below the folder that was given.

    Order matters: of two records with one PMID the later wins. NLM's own files come first, by year and number
    (the baseline, then the updates); anything else follows in natural order of its name.
    """
    found = {}
    for given in paths:
        if os.path.isdir(given):
            before = len(found)
            for folder, folders, names in os.walk(given, onerror=_refuse_folder):
                folders.sort()
                for name in names:
                    if name.lower().endswith(SUFFIXES[source]) and not name.startswith("."):
                        path = os.path.join(folder, name)
                        _add(found, path, os.path.relpath(path, given))
            if len(found) == before:
                raise UserError(f"{given}: holds no {source} input (looked for {', '.join(SUFFIXES[source])})")
        elif os.path.lexists(given):
            _add(found, given, os.path.basename(given))
        else:
            raise UserError(f"{given}: no such file or folder (input)")
    return sorted(found.values(), key=lambda f: order(f["name"]))


def _refuse_folder(error: OSError) -> None:
    """What `os.walk` would pass over, with every input in it."""
    raise UserError(f"{error.filename}: cannot be read: {error.strerror}")


def _add(found: dict, path: str, name: str) -> None:
    try:
        status = os.stat(path)
    except OSError as e:
        raise UserError(f"{path}: cannot be read: {e.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path}: is not a regular file (a pipe, a socket or a device)")
    name = os.fsencode(name).decode("utf-8", "backslashreplace")  # a name need not be text
    if name in found and os.path.realpath(found[name]["path"]) != os.path.realpath(path):
        raise UserError(f"{path}: another input is also called {name}; give their common folder instead")
    found[name] = {"path": os.path.abspath(path), "name": name, "bytes": status.st_size}


def order(name: str) -> tuple:
    """Sort key of an input's name."""
    natural = tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in _DIGITS.split(name) if part)
    nlm = _NLM.search(name)
    return (0, int(nlm[1]), int(nlm[2]), natural) if nlm else (1, 0, 0, natural)


def units(files: list[dict], megabytes: float) -> list[list[dict]]:
    """Consecutive small files together, until they make up `megabytes` on disk; a large file is a unit of its own."""
    grouped: list[list[dict]] = []
    size = 0.0
    for file in files:
        if not grouped or size + file["bytes"] > megabytes * 1e6:
            grouped.append([])
            size = 0.0
        grouped[-1].append(file)
        size += file["bytes"]
    return grouped
