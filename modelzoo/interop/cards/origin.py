"""Where an imported model came from: its name and revision on the Hugging Face Hub, as far as its folder says so."""

import json
import os
import re
from typing import Annotated

from pydantic import Field

from modelzoo.config.errors import UserError
from modelzoo.interop.cards.header import is_hub_id
from modelzoo.reading import exists, read_bytes
from modelzoo.records import Record, read_record
from modelzoo.training.logs.launches import read_launches
from modelzoo.training.runs.folder import RunFolder

WRITER = "imported by `run.py import`"  # the first line of config.yaml of an imported run
FILE = "import.json"  # in the folder of an imported run
PRUNED = "pruning.json"  # in that of a pruned one
_SNAPSHOT = re.compile(r"(?:^|/)models--(?P<name>[^/]+)/snapshots/(?P<revision>[0-9a-f]{40})")
_REVISION = re.compile(rb"[0-9a-f]{40}")
_METADATA = os.path.join(".cache", "huggingface", "download", "config.json.metadata")  # of `hf download --local-dir`
_FAR = 20  # runs that one may have begun from, one after the other


class Origin(Record):
    """What a run's folder keeps of the folder that it was imported from. None: that folder does not say."""

    source: str
    name: Annotated[str, Field(max_length=200)] | None = None
    revision: Annotated[str, Field(max_length=200)] | None = None

    def describe(self) -> str:
        """In words."""
        at = f", revision {self.revision}" if self.revision else ""
        folder = os.path.basename(self.source.rstrip(os.sep)) or self.source  # what is above it is nobody's business
        return f"{self.name} of the Hugging Face Hub{at}" if self.name else f"the folder {folder}{at}"

    def as_json(self) -> str:
        """The text of FILE."""
        return json.dumps(self.model_dump(exclude_none=True), indent=1, ensure_ascii=False) + "\n"


class _Start(Record):
    start: str | None = None


class _Pruned(Record):
    start: str | None = Field(None, alias="from")


def read_origin(folder: str) -> Origin:
    """Where a model's folder comes from: a snapshot of the Hub's cache names both, what `hf download` wrote elsewhere
    its revision alone."""
    path = os.path.realpath(folder)
    if found := _SNAPSHOT.search(path.replace(os.sep, "/")):
        name = found["name"].replace("--", "/")
        return Origin(source=folder, name=name if is_hub_id(name) else None, revision=found["revision"])
    try:
        words = read_bytes(os.path.join(path, _METADATA), 4096).split()
    except OSError:
        words = []
    known = bool(words) and _REVISION.fullmatch(words[0])
    return Origin(source=folder, revision=words[0].decode() if known else None)


def trace_origin(run: str | None, start: str | None = None) -> Origin | None:
    """The import that a run began from: its own, or that of the run before it, and so on. None: there was none.

    Args:
        run: its folder. start: the checkpoint that it began from, where that is known otherwise.

    Raises:
        UserError: a record is there and cannot be read.
    """
    for _ in range(_FAR):
        if run is None:
            return None
        if exists(own := os.path.join(run, FILE)):
            return read_record(own, Origin, "missing", "is not what `run.py import` writes")
        start = start or _find_start(run)
        run, start = None if start is None else RunFolder.containing(start).path, None
    return None


def _find_start(run: str) -> str | None:
    """The checkpoint that a run first began from, by its records."""
    folder = RunFolder(run)
    for path, schema in ((folder.result, _Start), (os.path.join(run, PRUNED), _Pruned)):
        if exists(path):
            return read_record(path, schema, "missing", "is not what this trainer writes", undefined=True).start
    try:
        begun = [launch.get("start") for launch in read_launches(folder).records]
    except UserError:  # the card names a log that cannot be read
        return None
    return next((b["path"] for b in begun if b is not None), None)
