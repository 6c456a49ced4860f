"""Where the tokenizer of a run lies, and which files it consists of. No torch."""

import os
from collections.abc import Iterable, Sequence

from modelzoo.config.errors import UserError
from modelzoo.config.trainer import Config, Init
from modelzoo.data import format as f
from modelzoo.data import manifest
from modelzoo.data.tokenizer import read_clean
from modelzoo.data.tokenizer_kinds import explain_folder
from modelzoo.files import write_bytes
from modelzoo.reading import exists, read_bytes

VOCABULARIES = (f.TOKENIZER, "vocab.json", "merges.txt", "encoder.json", "vocab.bpe")


def list_places(config: Config) -> list[str]:
    """Where the tokenizer of a run may lie: its training data's folders, each followed by the one above."""
    fit = config.trainer.fit
    folders = manifest.list_folders(fit.train_dataloader) if fit is not None else []
    return [p for d in folders for p in (d, os.path.dirname(os.path.abspath(d)))]


def find_vocabulary(places: Iterable[str]) -> list[str]:
    """The tokenizer's files in the first of some folders that has any; tokenizer.json before the others."""
    found = ([os.path.join(p, v) for v in VOCABULARIES if exists(os.path.join(p, v))] for p in places)
    return next(filter(None, found), [])


def tokenizer_in(places: Iterable[str]) -> str | None:
    """The same as `tokenizer.read_tokenizer` takes it: a tokenizer.json, or a folder with a GPT-2 vocabulary."""
    first = next(iter(find_vocabulary(places)), None)
    return first if first is None or os.path.basename(first) == f.TOKENIZER else os.path.dirname(first)


def require_tokenizer(init: Init, places: Sequence[str], who: str) -> str:
    """The tokenizer that `trainer.init.tokenizer` names, else the first in `places` (`list_places`).

    Raises:
        UserError: there is none; the message begins with `who`, which needs it.
    """
    if (found := init.tokenizer or tokenizer_in(places)) is None:
        raise UserError(
            f"{who}: no {f.TOKENIZER} next to the training data ({', '.join(places)}); name it with "
            "--set trainer.init.tokenizer=PATH"
        )
    return found


def list_files(named: str | None, config: Config) -> list[str]:
    """The files of the tokenizer `named` (a file, or a folder that holds them), else of the training data's; or none.

    Raises:
        UserError: nothing is there by that name.
    """
    if named is None:
        return find_vocabulary(list_places(config))
    found = [named] if os.path.isfile(named) else find_vocabulary([named])
    if not found:
        raise UserError(explain_folder(named) or f"{named}: holds no tokenizer ({', '.join(VOCABULARIES)})")
    return found


def copy_files(paths: Iterable[str], folder: str) -> None:
    """Copy a tokenizer's files into `folder`, a tokenizer.json as it is read here: without BPE dropout.

    Raises:
        UserError: one cannot be read, is no regular file, or is too large.
        OSError: one cannot be written.
    """
    for path in paths:
        try:
            data = read_clean(path) if os.path.basename(path) == f.TOKENIZER else read_bytes(path)
        except OSError as e:
            raise UserError(f"{path}: cannot be read ({e.strerror})") from None
        write_bytes(os.path.join(folder, os.path.basename(path)), data)
