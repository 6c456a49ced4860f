"""Where the tokenizer of a run lies, and which files it consists of. No torch."""

import os
import sys
from collections.abc import Iterable, Sequence

from modelzoo.config.errors import UserError
from modelzoo.config.trainer import Config, Init
from modelzoo.data import format as f
from modelzoo.data import hub, manifest
from modelzoo.data import tokenizer_kinds as kinds
from modelzoo.data.bos import write_bos
from modelzoo.data.tokenizer import Tokenizer, compare_vocabularies, parse_tokenizer, read_clean, read_tokenizer
from modelzoo.files import write_bytes
from modelzoo.reading import exists, read_bytes

SETS = ((f.TOKENIZER,), kinds.PAIRS[1], kinds.PAIRS[0], kinds.FAIRSEQ, (kinds.PIECES,))  # files of one tokenizer


def list_places(config: Config) -> list[str]:
    """Where the tokenizer of a run may lie: its training data's folders, each followed by the one above."""
    fit = config.trainer.fit
    folders = manifest.list_folders(fit.train_dataloader) if fit is not None else []
    return [p for d in folders for p in (d, os.path.dirname(os.path.abspath(d)))]


def find_vocabulary(places: Iterable[str]) -> list[str]:
    """The tokenizer's files in the first of some folders that has any; tokenizer.json before the others."""
    for place in places:
        whole = [s for s in SETS if all(exists(os.path.join(place, name)) for name in s)]
        if whole:
            return [os.path.join(place, name) for names in whole for name in names]
    return []


def tokenizer_in(places: Iterable[str]) -> str | None:
    """The same as `tokenizer.read_tokenizer` takes it: a tokenizer.json, or a folder that is converted."""
    first = next(iter(find_vocabulary(places)), None)
    return first if first is None or os.path.basename(first) == f.TOKENIZER else os.path.dirname(first)


def note_other(words: Tokenizer, places: Iterable[str]) -> None:
    """Report a tokenizer that was named where the model was trained with another one, which is in one of `places`."""
    path = tokenizer_in(places)
    if path is None or os.path.realpath(path) == os.path.realpath(words.name):
        return
    try:
        which = compare_vocabularies(parse_tokenizer(read_tokenizer(path), path), words.backend)
    except UserError:  # the one that was named is there to go on without it
        return
    if which is not None:
        text = f"{words.name}: is another tokenizer than {path}, which the model was trained with ({which})"
        print(f"note       {text}", file=sys.stderr, flush=True)


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


def list_files(named: str | None, config: Config, run: str | None = None) -> list[str]:
    """The files of the tokenizer `named` (a file, or a folder that holds them), else of the training data's; or none.

    Args:
        run: a run's folder, which is asked after the training data's.

    Raises:
        UserError: nothing is there by that name.
    """
    if named is None:
        return find_vocabulary([*list_places(config), *([run] if run else [])])
    if not exists(named):
        raise UserError(hub.explain_missing(named, "a tokenizer.json, or a folder with a tokenizer", hub.TOKENIZER))
    found = [named] if os.path.isfile(named) else find_vocabulary([named])
    if not found:
        known = ", ".join(" with ".join(names) for names in SETS)
        raise UserError(kinds.explain_folder(named) or f"{named}: holds no tokenizer ({known})")
    return found


def copy_files(paths: Sequence[str], folder: str, bos: int | None = None) -> None:
    """Copy a tokenizer's files into `folder` as they are read here: without BPE dropout, and as a tokenizer.json.

    Args:
        bos: `bos_token_id` of the model: what the copy's post-processor puts in front of texts, alone.

    Raises:
        UserError: one cannot be read, is no regular file, or is too large; or the tokenizer cannot be converted.
        OSError: one cannot be written.
    """
    if paths and not any(os.path.basename(p) == f.TOKENIZER for p in paths):
        whole = paths[0] if len(paths) == 1 else os.path.dirname(paths[0])
        write_bytes(os.path.join(folder, f.TOKENIZER), write_bos(read_tokenizer(whole), bos, whole).encode())
        return
    for path in paths:
        try:
            whole = os.path.basename(path) == f.TOKENIZER
            data = write_bos(read_clean(path).decode(), bos, path).encode() if whole else read_bytes(path)
        except UnicodeDecodeError as e:
            raise UserError(f"{path}: is not UTF-8 text (byte {e.start})") from None
        except OSError as e:
            raise UserError(f"{path}: cannot be read ({e.strerror})") from None
        write_bytes(os.path.join(folder, os.path.basename(path)), data)
