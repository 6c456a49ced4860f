"""Where a study keeps a run's config, what it was made from, its log and its folder; a changed study mixes with none.

<output>/configs/NAME.yaml         the run's whole config
<output>/configs/NAME.origin.json  hashes of the config, the start checkpoint and the data that it began with
<output>/runs/NAME/                an ordinary run folder
<output>/logs/NAME.txt             what the run printed
"""

import os
from collections.abc import Callable

from modelzoo.config import differences
from modelzoo.config.errors import UserError
from modelzoo.config.idle import NO_EFFECT
from modelzoo.config.loading.load import dump
from modelzoo.config.trainer import Config
from modelzoo.data import format as f
from modelzoo.data import manifest
from modelzoo.evaluation.scores.results import Origin, hash_checkpoint, hash_config
from modelzoo.files import sha256, write_guarded, write_json
from modelzoo.reading import exists, read_text
from modelzoo.records import Record, read_record
from modelzoo.study.matrix.matrix import Cell
from modelzoo.study.runs.read_log import read_final_loss
from modelzoo.training.runs.changes import name_changes
from modelzoo.training.runs.folder import STATE, RunFolder


class Saved(Record):
    """What a study needs of a checkpoint's state.json; `state_json.CheckpointState` is all of it."""

    unassessed: bool = False


class CellFiles:
    """The files of one run of the study in `output`."""

    def __init__(self, output: str, cell: Cell):
        self.cell, self.folder = cell, os.path.join(output, "runs", cell.name)
        self.config = os.path.join(output, "configs", f"{cell.name}.yaml")
        self.origin = os.path.join(output, "configs", f"{cell.name}.origin.json")
        self.log = os.path.join(output, "logs", f"{cell.name}.txt")
        self.run = RunFolder.of(cell.config.trainer.init, self.folder)

    @property
    def is_finished(self) -> bool:
        """Whether the checkpoint of the last step is there, which is whole or not at all, and the validation made."""
        last = os.path.join(self.run.checkpoints, f"step_{self.cell.steps}")
        try:
            saved = read_record(os.path.join(last, STATE), Saved, "is missing", "was changed")
        except UserError:  # the run finds out what became of it
            return False
        return os.path.isfile(os.path.join(last, "manifest.json")) and not saved.unassessed

    @property
    def final_loss(self) -> float | None:
        """Validation loss at the last step; None where there is none yet."""
        return read_final_loss(self.run.metrics, self.cell.steps)

    def write_config(self, note: Callable[[str], None]) -> None:
        """Write the run's config, and what it is made from.

        Args:
            note: is called with a line about a record that is damaged.

        Raises:
            UserError: the run began with another config, start checkpoint or data; says what differs.
            OSError: the study's folder cannot be written.
        """
        text = dump(self.cell.config, f"one run of a study: {self.cell.name}")
        origin = describe_origin(self.cell.config)
        if exists(self.run.metrics):
            self._check_config(text)
            self._check_origin(origin, note)
        if _read_if_there(self.config) != text:
            write_guarded(self.config, text)
        write_json(self.origin, origin)

    def _check_config(self, text: str) -> None:
        before = self.run.read_config()
        if before is None:
            if _read_if_there(self.config) not in (None, text):
                self._refuse("another config than the study now asks for")
            return
        if changed := _list_changes(before, self.cell.config):
            self._refuse(f"another config than the study now asks for ({name_changes(changed)})")

    def _check_origin(self, origin: dict, note: Callable[[str], None]) -> None:
        if not exists(self.origin):  # of a version that wrote none
            return
        try:
            before = read_record(self.origin, Origin, "is missing", "it was changed")
        except UserError as e:
            note(f"damaged    {e}; it is written again")
            return
        if before.checkpoint != origin["checkpoint"]:
            self._refuse("another content of the checkpoint that it starts from")
        now = origin["data"]
        if other := [k for k, v in before.data.items() if v and now.get(k) and v != now[k]]:
            self._refuse(f"other data in {', '.join(other)}")

    def _refuse(self, what: str) -> None:
        raise UserError(
            f"{self.folder}: began with {what}; give the changed study another output (-o), or remove that folder, "
            f"{self.config} and {self.origin}"
        )


def describe_origin(config: Config) -> dict:
    """What a run is made from (an `Origin`): of each data folder its manifest's hash, None where it has none."""
    fit = config.trainer.fit
    assert fit is not None  # a study's runs have data
    folders = [d for loader in (fit.train_dataloader, *fit.val_dataloader) for d in manifest.list_folders(loader)]
    paths = {d: os.path.join(d, f.MANIFEST) for d in folders}
    start = ""
    if fit.ckpt_path is not None:
        from modelzoo.planning.start_checkpoint import find_checkpoint

        start = hash_checkpoint(find_checkpoint(fit.ckpt_path))
    data = {d: sha256(path) if os.path.isfile(path) else None for d, path in paths.items()}
    return {"config": hash_config(config), "checkpoint": start, "data": data}


def _list_changes(before: Config, now: Config) -> dict[str, tuple[str, str]]:
    """The keys that act on a run and differ, with both values as text."""
    idle = {key for keys in NO_EFFECT.values() for key in keys}
    found = differences.keys([before, now])
    return {k: (a, b) for k, (a, b) in found.items() if k.rpartition(".")[2] not in idle}


def _read_if_there(path: str) -> str | None:
    try:
        return read_text(path)
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        return ""  # damaged: differs from any config
