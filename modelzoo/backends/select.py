"""Which device a run gets: what was asked for, or the next best with the reason said aloud."""

from typing import NamedTuple

import torch

from modelzoo.backends import csx
from modelzoo.backends.base import Backend
from modelzoo.backends.local import Local
from modelzoo.config.errors import UserError
from modelzoo.config.trainer import Init

WAYS_OUT = {
    "CSX": "give --mgmt_address of a cluster, or run on this machine with `auto` or `CPU`, or look at the run with `-m plan`",
    "GPU": "run with `auto` or `CPU`, or install a CUDA build of torch on a machine with an NVIDIA GPU",
}


class Choice(NamedTuple):
    backend: Backend
    asked: str
    said: str | None  # the line that explains a fallback


def missing(kind: str, init: Init) -> str | None:
    """Why `kind` cannot be used here, or None."""
    if kind == "CSX":
        return csx.missing(init.backend) or "training on CS-2 is not part of this version"
    if kind == "GPU" and not torch.cuda.is_available():
        return "torch sees no CUDA device" if torch.version.cuda else "this torch is a CPU build"
    return None


def select(target: str, init: Init) -> Choice:
    """The backend for `target`: CSX, GPU and CPU are taken at their word; auto tries the config's and falls back.

    Raises:
        UserError: an explicit target that is not there, with the ways out.
    """
    if target != "auto":
        if why := missing(target, init):
            raise UserError(f"{target}: {why}; {WAYS_OUT[target]}")
        return Choice(_make(target, init), target, None)
    asked = init.backend.backend_type
    order = ("CSX", "GPU", "CPU")[("CSX", "GPU", "CPU").index(asked) :] if asked != "auto" else ("GPU", "CPU")
    reasons = []
    for kind in order:
        why = missing(kind, init)
        if why is None:
            said = f"{', '.join(reasons)}; running on {kind}" if reasons and asked != "auto" else None
            return Choice(_make(kind, init), asked, said)
        reasons.append(f"{kind}: {why}")
    raise AssertionError("the CPU is always there")


def _make(kind: str, init: Init) -> Backend:
    return Local(torch.device("cuda" if kind == "GPU" else "cpu"), init.backend, init.precision)
