"""The logs of a run: metrics.jsonl (what was computed), timing.jsonl (how fast), and TensorBoard's files.

What was computed is kept apart from how fast, so that metrics.jsonl of a resumed run equals the uninterrupted one's to
the byte. On resume both are cut back to the checkpoint's step.
"""

import contextlib
import json
import os
from collections.abc import Mapping, Sequence

from modelzoo.config.errors import UserError
from modelzoo.files import read_json_lines, write_text
from modelzoo.training.run_folder import RunFolder
from modelzoo.training.trackers import Tracker


class LogError(UserError):
    """A log cannot be written."""


class Logs:
    """Append-only logs in `folder`, continuing after step `resume` (0: from the beginning).

    Args:
        events: the folder of TensorBoard's files; None writes none.
    """

    def __init__(self, folder: RunFolder, resume: int, events: str | None, trackers: Sequence[Tracker] = ()):
        os.makedirs(folder.path, exist_ok=True)
        self._files, self._trackers = {}, trackers
        for name, path in (("metrics", folder.metrics), ("timing", folder.timing)):
            _cut(path, resume)
            self._files[name] = open(path, "a", encoding="utf-8")  # noqa: SIM115 closed in close()
        self._writer = None
        if events is not None:
            from torch.utils.tensorboard import SummaryWriter  # a second to import, so only where it is wanted

            self._writer = SummaryWriter(events, purge_step=resume + 1)

    def write(self, step: int, kind: str, metrics: Mapping[str, float], timing: Mapping[str, float]) -> None:
        """One record of `step`. `kind` is train or validation."""
        for name, values in (("metrics", metrics), ("timing", timing)):
            if values:
                try:
                    self._files[name].write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
                    self._files[name].flush()
                except OSError as e:
                    raise LogError(
                        f"{self._files[name].name}: cannot be written ({e.strerror}); free some space and run the same "
                        "command again"
                    ) from None
            if self._writer is not None:
                for key, value in values.items():
                    self._writer.add_scalar(f"{kind}/{key}", value, step)
        for tracker in self._trackers:
            tracker.write(step, {f"{kind}/{k}": v for k, v in {**metrics, **timing}.items()})

    def close(self) -> None:
        for file in self._files.values():
            with contextlib.suppress(OSError):  # write() has reported what could not be written
                file.close()
        if self._writer is not None:
            self._writer.close()
        for tracker in self._trackers:
            tracker.close()


def read(path: str) -> list[dict]:
    """The records of a metrics.jsonl or timing.jsonl; a half-written last line (a killed run) is left out."""
    try:
        return read_json_lines(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such log") from None


def _cut(path: str, step: int) -> None:
    """Drop records after `step`, in one rename."""
    if not os.path.exists(path):
        return
    kept = [r for r in read(path) if r.get("step", 0) <= step and step > 0]
    write_text(path, "".join(json.dumps(r) + "\n" for r in kept))
