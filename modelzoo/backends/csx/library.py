"""cerebras.pytorch, imported here and nowhere else, with the two schedules that it lacks.

library.py    the library                    preflight.py  is there a cluster, would it take the job
backend.py    what the loop calls            lowering.py   what a lowered step holds, what made one fail
copy.py       a run's copy on the wafer      settings.py   cluster, precision, compile flags: from our config
parts.py      optimizer, rates and sparsity  input.py      what a cluster's input workers run
refusal.py    what a cluster says when it takes no job
"""

import logging
import os
import sys

# The bundled lowering tool is found through PATH, and this interpreter's folder need not be on it.
os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", "")

import cerebras.pytorch as cstorch
import torch
from cerebras.appliance import appliance_manager
from torch import Tensor

__all__ = ["cstorch", "Cubic", "Ramp", "log_to_stderr"]


_freeze = appliance_manager.pip_freeze


def _freeze_without_us(**options) -> list[str]:
    """`pip freeze` for the image that a cluster builds for its input workers, less this trainer.

    A clone that was ever installed lists itself there, but no index has it, so the build would fail. Workers import it
    from python_paths.
    """
    return [x for x in _freeze(**options) if not x.lower().replace("_", "-").startswith("mediswift-trainer=")]


appliance_manager.pip_freeze = _freeze_without_us


class _OneLine(logging.Formatter):
    """The library's messages without the tracebacks it logs with some of them: what ends a run is reported once."""

    def format(self, record: logging.LogRecord) -> str:
        bare = logging.makeLogRecord({**record.__dict__, "exc_info": None, "exc_text": None, "stack_info": None})
        return super().format(bare)


def log_to_stderr(level: str) -> None:
    """Print the library's messages from `level` (debug, info, ...) on."""
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("cerebras   %(message)s"))
    logger = logging.getLogger("cerebras")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(level.upper())


class Cubic(cstorch.sparse.utils.HyperParameterSchedule):
    """Zhu & Gupta's schedule, which cerebras.pytorch does not have. It finds subclasses by their names."""

    def __init__(self, final: float, end: int, init: float = 0.0, begin: int = 0):
        super().__init__()
        self.init, self.final, self.begin, self.end = init, final, begin, end

    def compute(self, step: Tensor) -> Tensor:
        share = torch.clamp((torch.as_tensor(step).float() - self.begin) / (self.end - self.begin), 0.0, 1.0)
        left = 1.0 - share
        return self.final + (self.init - self.final) * left * left * left


class Ramp(cstorch.sparse.utils.HyperParameterSchedule):
    """A linear schedule that stays at `final` once there; cerebras.pytorch's goes on to 1."""

    def __init__(self, init: float, slope: float, final: float):
        super().__init__()
        self.init, self.slope, self.final = init, slope, final

    def compute(self, step: Tensor) -> Tensor:
        y = self.init + torch.as_tensor(step).float() * self.slope
        return torch.clamp(y, max=self.final) if self.slope >= 0 else torch.clamp(y, min=self.final)
