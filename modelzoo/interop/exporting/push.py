"""`run.py push`: an export made ready for the Hub, and the command that uploads it. Nothing is sent from here."""

import os
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from modelzoo import checksums
from modelzoo.config.errors import UserError
from modelzoo.folders import add_kind
from modelzoo.interop.cards.header import UNKNOWN, check_facts, is_hub_id, render_header, split_card
from modelzoo.progress import format_size
from modelzoo.reading import MIB, exists, read_text
from modelzoo.redact import redact_text

CARD = "README.md"
_MODELS = ("config.json", "model.onnx")  # one of them is in every folder that `export` writes
_TEXT = (".md", ".json", ".txt", ".yaml", ".yml", ".jsonl", ".py", ".env", ".cfg", ".ini", ".log")
_PASSED_OVER = (".git", ".cache")  # by hf upload, which keeps its own there
_WORDS = ("tokenizer.json", "vocab.json", "encoder.json", "merges.txt", "vocab.bpe")  # any text may be a token there


def prepare_push(folder: str, repo: str | None = None, given: Mapping[str, Any] | None = None) -> str:
    """Check an export and complete its card's metadata.

    Args:
        repo: ORG/NAME on the Hub.
        given: metadata to set, by the Hub's key; None leaves a key as it is.

    Returns:
        What was checked, what is not known, and the command that uploads the folder, as text for the user.

    Raises:
        UserError: it is no export, a file is missing or was changed, a text holds a secret, or the metadata is not what
            the Hub reads.
    """
    if repo is not None and ("/" not in repo or not is_hub_id(repo)):
        raise UserError(
            f"--repo {repo}: is no repository of the Hub; those are ORG/NAME, of letters, digits, -, _ and ."
        )
    _check_folder(folder)
    path = os.path.join(folder, CARD)
    text = _read(path)
    facts, body = split_card(text, path)
    found = {**facts, **{k: v for k, v in (given or {}).items() if v is not None}}
    check_facts(found, path)
    files = _list_files(folder)
    _check_secrets(folder, files)
    sealed = _list_sealed(folder)
    if others := [n for n in files if n not in sealed]:
        print(f"note       not of the export, and uploaded too: {', '.join(others[:8])}", file=sys.stderr)
    changed = [k for k in found if found[k] != facts.get(k)]
    if changed or CARD not in sealed:  # which a kill in the middle of this leaves
        try:
            checksums.write_sealed(folder, CARD, render_header(found) + body)
        except OSError as e:
            raise UserError(f"{path}: not written ({e.strerror or e})") from None
    size = sum(os.path.getsize(os.path.join(folder, n)) for n in files)
    lines = [f"checked    {folder}: {len(files)} files, {format_size(size)}; as exported, without a secret in a text"]
    known = {k: found[k] for k in (*UNKNOWN, "language", "library_name", "pipeline_tag", "tags") if found.get(k)}
    lines += [f"card       {k}: {', '.join(v) if isinstance(v, list) else v}{'   (new)' * (k in changed)}"
              for k, v in known.items()]  # fmt: skip
    lines += [f"not known  {k}: {what}; {flag}" for k, (flag, what) in UNKNOWN.items() if not found.get(k)]
    name = repo or f"ORG/{os.path.basename(os.path.abspath(folder))}"
    lines.append("next       hf auth login   (once; pip install huggingface_hub; a token that may write)")
    lines.append(f"           hf upload {shlex.quote(name)} {shlex.quote(folder)} . --private")
    loading = f'AutoModelForCausalLM.from_pretrained("{name}")' if found.get("library_name") == "transformers" else (
        f"hf download {shlex.quote(name)}"
    )  # fmt: skip
    lines.append(f"           read https://huggingface.co/{name}, make it public there; others: {loading}")
    return "\n".join(lines)


def _check_folder(folder: str) -> None:
    """Refuse what `export` did not write, or what is no longer as it wrote it."""
    if not os.path.isdir(folder):
        what = "is a file; push takes a folder that export wrote" if exists(folder) else "no such folder"
        raise UserError(f"{folder}: {what} (python run.py export RUN OUT)")
    if not any(exists(os.path.join(folder, n)) for n in _MODELS):
        missing = f"holds no {' or '.join(_MODELS)}; name a folder that export wrote"
        raise UserError(add_kind(f"{folder}: {missing}", folder))
    if not exists(os.path.join(folder, checksums.NAME)):
        raise UserError(f"{folder}: has no {checksums.NAME}: export did not write it, or it was removed; export again")
    for inner in _list_parts(folder):
        checksums.check_checksums(inner)
    if not exists(os.path.join(folder, CARD)):
        raise UserError(f"{os.path.join(folder, CARD)}: missing; export it again")


def _list_parts(folder: str) -> list[str]:
    """The folders that have a list of their own: the export, and its adapter if it has one."""
    inner = sorted(e.path for e in os.scandir(folder) if e.is_dir())
    return [folder, *(p for p in inner if exists(os.path.join(p, checksums.NAME)))]


def _list_sealed(folder: str) -> set[str]:
    """What the lists name, relative to `folder`."""
    parts = _list_parts(folder)
    return {os.path.relpath(os.path.join(p, n), folder) for p in parts for n in checksums.list_sealed(p)}


def _list_files(folder: str) -> list[str]:
    """All files below `folder` that are uploaded, relative to it.

    Raises:
        UserError: one is a link or no regular file, which would be uploaded as something else.
    """
    found = []
    for inner, folders, names in os.walk(folder):
        folders[:] = [n for n in folders if n not in _PASSED_OVER]
        for name in (*folders, *names):
            path = os.path.join(inner, name)
            if os.path.islink(path) or not (os.path.isdir(path) or os.path.isfile(path)):
                raise UserError(f"{path}: is a link or no regular file; remove it")
        found += [os.path.relpath(os.path.join(inner, n), folder) for n in names]
    return sorted(found)


def _read(path: str) -> str:
    try:
        return read_text(path, 16 * MIB)
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: cannot be read ({getattr(e, 'strerror', None) or 'is not UTF-8 text'})") from None


def _check_secrets(folder: str, files: list[str]) -> None:
    """Refuse texts that hold a password, a token or a key: what is on the Hub once is public for ever."""
    for name in files:
        base = os.path.basename(name)
        if not (base.endswith(_TEXT) or base.startswith(".")) or base in _WORDS:
            continue
        text = _read(os.path.join(folder, name))
        if redact_text(text) == text:
            continue
        line = next((i for i, line in enumerate(text.splitlines(), 1) if redact_text(line) != line), 1)
        raise UserError(
            f"{os.path.join(folder, name)}:{line}: holds what looks like a password, a token or a key; remove it"
        )
