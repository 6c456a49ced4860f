"""Which files a job reads, in which order, grouped into units of work."""

import os
import re
import stat
from collections import Counter, deque
from collections.abc import Iterable, Iterator

from modelzoo.config.errors import UserError

PACKINGS = ("", ".gz", ".bz2", ".xz", ".zst")  # what `streams.unpacked` undoes
PACKAGES = (*(f".tar{packing}" for packing in PACKINGS), ".tgz", ".tbz", ".tbz2", ".txz", ".tzst")
_STEMS = {"pubmed": (".xml",), "pmc": (".nxml", ".xml"), "bioc": (".json", ".jsonl"), "jsonl": (".jsonl", ".txt")}
SUFFIXES = {source: tuple(s + p for s in stems for p in PACKINGS) for source, stems in _STEMS.items()}
SUFFIXES["pmc"] += PACKAGES
SUFFIXES["bioc"] += PACKAGES
# A .json that is packed is most often JSON lines (peS2o); one that is not may describe the data next to it.
SUFFIXES["jsonl"] += (".ndjson", *(s + p for s in (".json", ".ndjson") for p in PACKINGS[1:]))
_NLM = re.compile(r"(?:pubmed|medline)(\d\d)n(\d{4,})\.xml(\.[a-z0-9]+)?$")
_DIGITS = re.compile(r"(\d+)")


def find(paths: tuple[str, ...], source: str, passed: Counter[str] | None = None) -> list[dict]:
    """[{"path", "name", "bytes"}] in reading order. A name is the path below the folder that was given.

    Where two files would have one name, names are paths below the common folder of all that was given. A file that is
    reached in several ways, by links or by inputs that overlap, is read once.

    Order matters: of two records with one PMID the later wins. NLM's own files come first, by year and number
    (the baseline, then the updates); anything else follows in natural order of its name.

    Args:
        passed: counts what is in the folders and is not read: "hidden", "other names", "found twice".

    Raises:
        UserError: there is no such path, it cannot be read or is no regular file, a folder holds no input, or a link
            leads back to a folder that it is in.
    """
    passed = Counter() if passed is None else passed
    found: dict[str, dict] = {}  # by its path without links
    for given in paths:
        if os.path.isdir(given):
            before = Counter(passed)
            files = list(_walk(given, SUFFIXES[source], passed))
            if not files:
                more = "; ".join(f"{kind}: {n:,}" for kind, n in (passed - before).items())
                looked = f"looked for {', '.join(SUFFIXES[source])}" + (f"; passed over {more}" if more else "")
                raise UserError(f"{given}: holds no {source} input ({looked})")
            root = given
        elif os.path.lexists(given):
            files, root = [(given, os.path.realpath(given), 0)], os.path.dirname(given)
        else:
            raise UserError(f"{given}: no such file or folder (input)")
        for path, real, links in files:
            file = _describe(path, os.path.relpath(path, root or "."), links)
            if real in found:
                passed["found twice"] += 1
                file = min(found[real], file, key=lambda f: (f["links"], order(f["name"]), f["path"]))
            found[real] = file
    files = list(found.values())
    if len({file["name"] for file in files}) < len(files):
        common = os.path.commonpath([os.path.abspath(p if os.path.isdir(p) else os.path.dirname(p)) for p in paths])
        files = [file | {"name": as_text(os.path.relpath(file["path"], common))} for file in files]
    names = Counter(file["name"] for file in files)
    for file in files:
        if names[file["name"]] > 1:
            raise UserError(f"{file['path']}: another input is also called {file['name']}; rename one of them")
        del file["links"]
    return sorted(files, key=lambda f: order(f["name"]))


def refuse_inside(output: str, inputs: Iterable[str]) -> None:
    """Refuse an output that is one of the folders that it is made from, or in one: it would be among the inputs.

    Raises:
        UserError: names the output and the input.
    """
    target = os.path.realpath(output)
    for given in inputs:
        folder = os.path.realpath(given)
        if os.path.isdir(folder) and os.path.commonpath([folder, target]) == folder:
            raise UserError(f"{output}: is the input {given}, or in it; give an --output outside of it")


def _walk(top: str, suffixes: tuple[str, ...], passed: Counter[str]) -> Iterator[tuple[str, str, int]]:
    """(path, the same without links, number of links on the way) of the inputs in a folder and those below it."""
    waiting: deque[tuple[str, str, tuple[str, ...]]] = deque([(top, os.path.realpath(top), ())])
    seen: set[str] = set()
    while waiting:
        folder, real, crossed = waiting.pop()  # crossed: the real folders in which a link was followed
        if real in seen:
            passed["found twice"] += 1
            continue
        seen.add(real)
        try:
            with os.scandir(folder) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError as e:  # what `os.walk` would pass over, with every input in it
            raise UserError(f"{folder}: cannot be read: {e.strerror}") from None
        for entry in listed:
            if entry.name.startswith("."):
                passed["hidden"] += 1
                continue
            link = entry.is_symlink()
            target = os.path.realpath(entry.path) if link else os.path.join(real, entry.name)
            if os.path.isdir(entry.path) if link else entry.is_dir():
                if not link:
                    waiting.append((entry.path, target, crossed))
                    continue
                around = target.rstrip(os.sep) + os.sep
                if any((place + os.sep).startswith(around) for place in (*crossed, real)):
                    raise UserError(f"{entry.path}: is a link back to {target}, which it is in; remove the link")
                waiting.appendleft((entry.path, target, (*crossed, real)))  # files without a link come first
            elif is_wanted(entry.name, suffixes, passed):
                yield entry.path, target, len(crossed) + link


def is_wanted(name: str, suffixes: tuple[str, ...], passed: Counter[str]) -> bool:
    """Whether a file, or a package's member, is an input by its name; `passed` counts those that are not, by kind."""
    hidden = name.rpartition("/")[2].startswith(".")  # ._PMC1.xml: what macOS keeps next to PMC1.xml
    wanted = not hidden and name.lower().endswith(suffixes)
    if not wanted:
        passed["hidden" if hidden else "other names"] += 1
    return wanted


def _describe(path: str, name: str, links: int) -> dict:
    """What is known of an input.

    Raises:
        UserError: it cannot be read, or is no regular file.
    """
    try:
        status = os.stat(path)
    except OSError as e:
        raise UserError(f"{path}: cannot be read: {e.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path}: is not a regular file (a pipe, a socket or a device)")
    if not os.access(path, os.R_OK):
        raise UserError(f"{path}: cannot be read: Permission denied")
    return {"path": os.path.abspath(path), "name": as_text(name), "bytes": status.st_size, "links": links}


def as_text(name: str) -> str:
    r"""A file's name as text, which it need not be: bytes that are not UTF-8 become `\xff` and the like."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def strip_packing(name: str) -> str:
    """A file's name in lower case, without the suffix of its compression."""
    name = name.lower()
    return next((name.removesuffix(p) for p in PACKINGS[1:] if name.endswith(p)), name)


def is_package(name: str) -> bool:
    """Whether a file's name is that of a tar package, compressed or not."""
    return name.lower().endswith(PACKAGES)


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
