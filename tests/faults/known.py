"""Faults that were found and are not corrected yet: `make test` passes over them, `make faults` does not.

Empty this list as they are corrected. Each line: the part, the verdict, a pattern of its detail, and what is wrong.
"""

import re

from tests.faults.part import Verdict

KNOWN = (
    # a failed or killed `pack` blocks its own retry
    ("kills|operations", "lost", r"^pack.*is not empty", "pack cannot go on"),
    # h5py and safetensors raise RuntimeError, or an OSError without a file name
    ("operations", "fault70", r"RuntimeError|OSError|PermissionError|FileNotFoundError", "no file name in the error"),
    ("operations", "traceback", r"error lines", "h5py's message has two lines"),
    ("operations", "traceback", r"tensorboard|^(train|resume)", "TensorBoard's thread dies of a full disk"),
)


def is_known(part: str, verdict: Verdict) -> bool:
    """Whether a verdict is one of the known faults."""
    return any(
        re.fullmatch(parts, part) and kind == verdict.kind and re.search(pattern, verdict.detail, re.S)
        for parts, kind, pattern, _ in KNOWN
    )
