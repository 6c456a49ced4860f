"""Layers that are pruned, kept next to the run's folder to be: a killed `run.py prune` goes on behind them.

    OUT.unfinished/  request.json  layer_0.safetensors  layer_0.json  layer_1.safetensors  ...

A layer counts when its .json is there, which is written last and holds the hash of its tensors.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from modelzoo.config.errors import UserError
from modelzoo.files import measure_file, replacing, write_text
from modelzoo.interop.hf.tensor_files import read_tensors, write_tensors
from modelzoo.reading import exists
from modelzoo.records import is_sealed, read_json, seal

SUFFIX = ".unfinished"
_REQUEST, _GONE = "request.json", "missing"


class Unfinished:
    """The layers of one request that are done. Nothing is written before the first is.

    Args:
        folder: of the layers; whoever writes there holds it (`lock.lock_folder`).
        request: JSON of all that decides the pruned weights' bits.

    Raises:
        UserError: the folder holds layers of another request.
    """

    def __init__(self, folder: str, request: Mapping[str, Any]):
        self.folder, self._request = folder, dict(request)
        path = os.path.join(folder, _REQUEST)
        if exists(path):
            before = read_json(path, _GONE)
            before = before if isinstance(before, dict) else {}
            if other := sorted(k for k in {*before, *request} if before.get(k) != request.get(k)):
                raise UserError(
                    f"{folder}: holds the layers of another pruning that was cut short (other {', '.join(other)}); "
                    "repeat its command to finish it, remove the folder, or give another run folder"
                )
        elif exists(folder):  # a kill while it was removed: whose layers these are is not on record
            for name in (n for n in os.listdir(folder) if n.startswith("layer_")):
                os.remove(os.path.join(folder, name))

    def has(self, number: int) -> bool:
        """Whether layer `number` is there."""
        return exists(self._path(number, "json"))

    def load(self, number: int) -> tuple[dict[str, Tensor], list[dict[str, Any]]] | None:
        """The tensors and facts of layer `number`; None, with a line where it is damaged, if it must be pruned."""
        if not self.has(number):
            return None
        path = self._path(number, "safetensors")
        try:
            facts = read_json(self._path(number, "json"), _GONE)
            if not is_sealed(facts) or facts.get("sha256") != measure_file(path).sha256:
                raise UserError(f"{path}: was changed after it was written")
            return read_tensors(path), facts["weights"]
        except (UserError, OSError) as e:
            print(f"note       layer {number + 1} is pruned again: {' '.join(str(e).split())}", file=sys.stderr)
            return None

    def save(self, number: int, tensors: Mapping[str, Tensor], weights: Sequence[Mapping[str, Any]]) -> None:
        """Keep layer `number`.

        Args:
            weights: JSON facts about each weight.

        Raises:
            OSError: it cannot be written.
        """
        if not exists(path := os.path.join(self.folder, _REQUEST)):
            write_text(path, json.dumps(self._request, indent=1) + "\n", durable=True)
        path = self._path(number, "safetensors")
        with replacing(path, durable=True) as temporary:
            write_tensors(temporary, {name: x.cpu() for name, x in tensors.items()})
        facts = {"sha256": measure_file(path).sha256, "weights": list(weights)}
        write_text(self._path(number, "json"), json.dumps(seal(facts)) + "\n", durable=True)

    def _path(self, number: int, ending: str) -> str:
        return os.path.join(self.folder, f"layer_{number}.{ending}")
