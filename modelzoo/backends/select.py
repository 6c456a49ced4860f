"""Which device a run gets: what was asked for, or the next best with the reason said aloud."""

from typing import NamedTuple

import torch

from modelzoo.backends import csx_preflight
from modelzoo.backends.base import Backend
from modelzoo.backends.local import Local
from modelzoo.config.errors import UserError
from modelzoo.config.trainer import Init

WAYS_OUT = {
    "CSX": csx_preflight.WAYS_OUT,
    "GPU": "run with `auto` or `CPU`, or install a CUDA build of torch on a machine with an NVIDIA GPU",
}


class Choice(NamedTuple):
    backend: Backend
    asked: str
    said: str | None  # the line that explains a fallback

    def describe(self) -> str:
        """Lines for a start: the device and its arithmetic, why it is no other, what is done otherwise than asked."""
        first = f"device     {self.backend.describe()}" + (f"  [{self.said}]" if self.said else "")
        return "\n".join([first, *(f"           {note}" for note in self.backend.notes)])


def missing(kind: str, init: Init) -> str | None:
    """Why `kind` cannot be used here, or None."""
    if kind == "CSX":
        return structured(init) or csx_preflight.missing(csx_preflight.with_defaults(init.backend))
    if kind == "GPU" and not torch.cuda.is_available():
        return "torch sees no CUDA device" if torch.version.cuda else "this torch is a CPU build"
    return None


def structured(init: Init) -> str | None:
    """Why the CS-2 cannot hold the config's masks, or None: it takes each weight for itself."""
    pattern = next((g.pattern for g in init.sparsity if g.pattern), None)
    return pattern and f"its masks are unstructured, not trainer.init.sparsity's {pattern}"


def select(target: str, init: Init, folder: str = ".") -> Choice:
    """The backend for `target`: CSX, GPU and CPU are taken at their word; auto tries the config's and falls back.

    Args:
        folder: the run's; cerebras.pytorch writes its artefacts under it.

    Raises:
        UserError: an explicit target that is not there, with the ways out.
    """
    if target == "CSX":
        _require_unstructured(init)
    if target != "auto":
        if why := missing(target, init):
            raise UserError(f"{target}: {why}; {WAYS_OUT[target]}")
        return Choice(_make(target, init, folder), target, None)
    asked, reasons = init.backend.backend_type, []
    for kind in init.backend.candidates(target):
        why = missing(kind, init)
        if why is None:
            said = f"{', '.join(reasons)}; running on {kind}" if reasons and asked != "auto" else None
            return Choice(_make(kind, init, folder), asked, said)
        reasons.append(f"{kind}: {why}")
    raise AssertionError("the CPU is always there")


def _require_unstructured(init: Init) -> None:
    if why := structured(init):
        raise UserError(f"CSX: {why}; leave the pattern out, or train it with GPU or CPU")


def _make(kind: str, init: Init, folder: str) -> Backend:
    if kind == "CSX":
        return csx(init, folder)
    return Local(torch.device("cuda" if kind == "GPU" else "cpu"), init.backend, init.precision)


def csx(init: Init, folder: str, only: str | None = None) -> Backend:
    """The CS-2 backend; `only` is "validate" (needs no cluster) or "compile".

    Raises:
        UserError: the client library is not installed here.
    """
    _require_unstructured(init)
    if why := csx_preflight.no_library():
        raise UserError(f"CSX: {why}")
    from modelzoo.backends.csx_backend import CSX  # takes seconds to import, and is installed in its own environment

    backend = csx_preflight.with_defaults(init.backend)
    return CSX(init.model_copy(update={"backend": backend}), folder, only)
