"""The metadata block of a model card (YAML between two lines of ---), as the Hub reads it.

What is not known is named in a comment, with the flag of `run.py push` that adds it.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from modelzoo.config.errors import UserError
from modelzoo.config.loading.yaml12 import dump, parse
from modelzoo.records import Record, check_record

_REPO = r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9_])?"
HUB_ID = re.compile(rf"{_REPO}(?:/{_REPO})?")
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_LANGUAGE = re.compile(r"[a-z]{2,3}|multilingual|code")
LICENCES = "https://huggingface.co/docs/hub/repositories-licenses"
UNKNOWN = {  # the keys that a training run does not know: the flag of `run.py push`, and what it is for
    "license": ("--license ID", f"what the weights may be used for, as apache-2.0; {LICENCES}"),
    "datasets": ("--datasets ORG/NAME", "the training data on the Hub, if it is there"),
    "base_model": ("--base_model ORG/NAME", "on the Hub, if the run began from another model's weights"),
}
Names = str | list[str] | None


class Header(Record):
    """What is read here of a card's metadata; other keys (model-index, ...) stay as they are."""

    license: str | None = None
    language: Names = None
    library_name: Annotated[str, Field(min_length=1)] | None = None
    pipeline_tag: Annotated[str, Field(min_length=1)] | None = None
    tags: list[str] | None = None
    datasets: Names = None
    base_model: Names = None


def describe(library: str, tags: list[str], base_model: str | None = None) -> dict[str, Any]:
    """The metadata that an export knows.

    Args:
        base_model: on the Hub, whose weights the run began from.
    """
    known = base_model if base_model is not None and is_hub_id(base_model) else None
    facts = {"language": "en", "library_name": library, "pipeline_tag": "text-generation", "tags": tags}
    return {**facts, **({"base_model": known} if known else {})}


def render_header(facts: Mapping[str, Any]) -> str:
    """The block, with a line for each key that is missing."""
    missing = [
        f"# {k}: not on record; run.py push FOLDER {flag}\n" for k, (flag, _) in UNKNOWN.items() if not facts.get(k)
    ]
    return f"---\n{dump({k: v for k, v in facts.items() if v is not None})}{''.join(missing)}---\n"


def split_card(text: str, path: str) -> tuple[dict[str, Any], str]:
    """A card's metadata, and what follows it. A card without any has an empty one.

    Raises:
        UserError: the block is not closed, or is no YAML mapping; names file and line.
    """
    lines = text.splitlines(keepends=True)
    if not lines or lines[0].strip() != "---":
        return {}, text
    end = next((i for i, line in enumerate(lines[1:], 1) if line.strip() == "---"), None)
    if end is None:
        raise UserError(f"{path}:1: the metadata that begins here is not closed by a line of ---")
    inner = "".join(lines[1:end])
    doc = parse("\n" + inner, path)  # a blank line: the numbers of lines are the card's
    if doc.data is None:
        return {}, "".join(lines[end + 1 :])
    if not isinstance(doc.data, dict):
        raise UserError(f"{path}:2: the metadata is not a mapping of keys")
    if doc.repeats:
        raise UserError(str(doc.repeats[0]))
    return doc.data, "".join(lines[end + 1 :])


def check_facts(facts: Mapping[str, Any], path: str) -> None:
    """Refuse metadata that the Hub would not take.

    Raises:
        UserError: names the key, and how it is spelt.
    """
    header = check_record(dict(facts), Header, path, "is not what the Hub reads")
    if header.license is not None and not _LICENCE.fullmatch(header.license):
        near = re.sub(r"[^a-z0-9.+]+", "-", header.license.lower()).strip("-")
        raise UserError(f"{path}: license: {header.license[:60]!a} is no id of the Hub ({near}?); see {LICENCES}")
    for language in _list(header.language):
        if not _LANGUAGE.fullmatch(language):
            raise UserError(f"{path}: language: {language[:40]!a}; the Hub takes ISO 639 codes, as en or de")
    for key in ("datasets", "base_model"):
        for name in _list(getattr(header, key)):
            if not is_hub_id(name):
                raise UserError(f"{path}: {key}: {name[:80]!a} is no name on the Hub; those are ORG/NAME")


def is_hub_id(name: str) -> bool:
    """Whether the Hub takes `name` for a repository: as `huggingface_hub.utils.validate_repo_id`."""
    return bool(HUB_ID.fullmatch(name)) and len(name) <= 96 and "--" not in name and ".." not in name and (
        not name.endswith((".git", ".ipynb"))
    )  # fmt: skip


def _list(names: Names) -> list[str]:
    return [names] if isinstance(names, str) else names or []
