"""TensorBoard's event files, written at once and by us: no thread that a full disk could stop, names in their order.

TensorBoard reads a folder's files by name, which begins with the second in which each was made. After a clock that went
back, the file of a resumed run would be read before the run's first, and its purge would hide what follows.
"""

import os
import re
import socket
import time
from collections.abc import Mapping
from typing import Any

from modelzoo.config.trainer import Init

_NAME = re.compile(r"events\.out\.tfevents\.(\d{1,12})\.")


_CARDS = {  # TensorBoard orders its groups of cards by name
    "loss": "loss", "churn": "masks", "sparsity": "masks", "sparsity_target": "masks", "lr": "optimizer",
    "grad_norm": "optimizer", "loss_scale": "optimizer", "skipped": "optimizer", "seconds": "speed",
    "tokens_per_second": "speed", "waiting": "speed", "tokens": "total", "flops": "total", "dense_flops": "total",
}  # fmt: skip


def name_cards(kind: str, values: Mapping[str, float]) -> dict[str, float]:
    """Values of a record by TensorBoard's tags: loss/train and loss/validation come first, scores last."""
    named = {}
    for key, x in values.items():
        group = _CARDS.get(key, "score")
        tag = kind if key == "loss" else key if kind == "train" else f"{kind}_{key}"
        named[f"{group}/{tag}"] = x
    return named


def events_folder(init: Init, folder: str) -> str | None:
    """Where a run's TensorBoard files go; None where its loggers leave TensorBoard out.

    TensorBoard names a run by its folder, so the default is one with the run's name in tensorboard/. What is there
    already is continued, whatever it is called.
    """
    named = [logger.value for logger in init.loggers if logger.name == "TensorBoardLogger"]
    if init.loggers and not named:
        return None
    if named and named[-1].summary_dir:
        return named[-1].summary_dir
    root = os.path.join(folder, "tensorboard")
    try:
        held = sorted(os.listdir(root))
    except OSError:
        held = []
    if any(name.startswith("events.") for name in held):  # as earlier versions wrote them
        return root
    folders = [name for name in held if os.path.isdir(os.path.join(root, name))]
    return os.path.join(root, folders[0] if folders else os.path.basename(os.path.abspath(folder)))


class Events:
    """A new event file in `folder`.

    Args:
        resume: steps after it that earlier files hold are passed over.

    Raises:
        OSError: the folder or the file cannot be made.
    """

    def __init__(self, folder: str, resume: int):
        # seconds to import, so only where it is wanted
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        os.makedirs(folder, exist_ok=True)
        last = max((int(m[1]) for name in os.listdir(folder) if (m := _NAME.match(name))), default=0)
        self._behind = max(0, last + 1 - int(time.time()))  # seconds, by which this clock is behind the last file's
        name = f"events.out.tfevents.{int(self._time()):010d}.{socket.gethostname()}.{os.getpid()}.0"
        self._file: Any = open(os.path.join(folder, name), "xb")  # noqa: SIM115 closed in close()
        events: Any = event_pb2  # protobuf makes its classes when it is imported, where no checker sees them
        summaries: Any = summary_pb2
        self._event, self._summary, self._writer = events.Event, summaries.Summary, RecordWriter(self._file)
        begin = events.SessionLog(status=events.SessionLog.START)
        self._put(self._event(wall_time=self._time(), file_version="brain.Event:2"))
        self._put(self._event(wall_time=self._time(), step=resume + 1, session_log=begin))
        self._file.flush()

    def _time(self) -> float:
        return time.time() + self._behind

    def _put(self, event: Any) -> None:
        self._writer.write(event.SerializeToString())

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Scalars by tag, of one step.

        Raises:
            OSError: they cannot be written.
        """
        found = [self._summary.Value(tag=tag, simple_value=x) for tag, x in values.items()]
        self._put(self._event(wall_time=self._time(), step=step, summary=self._summary(value=found)))
        self._file.flush()
        if not os.path.exists(self._file.name):
            raise FileNotFoundError(2, "was removed during the run", self._file.name)

    def close(self) -> None:
        """Close the file.

        Raises:
            OSError: what is left cannot be written.
        """
        self._file.close()
