"""Faults that were found and are not corrected yet: `make test` passes over them, `make faults` does not.

Empty this list as they are corrected. Each line: the part, the verdict, a pattern of its detail, and what is wrong.
"""

import re

from tests.faults.part import Verdict

KNOWN = (
    # leftovers of killed processes: .NAME.PID.tmp stays next to an output
    ("kills|signals|operations", "outside", r"left \S*\.tmp", "temporaries of dead processes are not removed"),
    # a failed or killed `pack` blocks its own retry
    ("kills|operations", "lost", r"^pack.*is not empty", "pack cannot go on"),
    # h5py and safetensors raise RuntimeError, or an OSError without a file name
    ("operations", "fault70", r"RuntimeError|OSError|PermissionError|FileNotFoundError", "no file name in the error"),
    ("operations", "traceback", r"error lines", "h5py's message has two lines"),
    ("operations", "traceback", r"tensorboard|^(train|resume)", "TensorBoard's thread dies of a full disk"),
    # an export takes an older checkpoint where the newest cannot be looked at
    ("operations", "silent", r"^(export|score|plan).*exit code 0, but", "an unreadable newest checkpoint is not named"),
    # a launch that is stopped after it kept the former config keeps it once more
    ("kills|signals|operations", "silent", r"left run/config\.until_\d+_\d+\.yaml$", "config.until_N_2.yaml"),
    # without a standard error there is no `isatty`
    ("output", "fault70", r"isatty", "the live line needs a standard error"),
)


def is_known(part: str, verdict: Verdict) -> bool:
    """Whether a verdict is one of the known faults."""
    return any(
        re.fullmatch(parts, part) and kind == verdict.kind and re.search(pattern, verdict.detail, re.S)
        for parts, kind, pattern, _ in KNOWN
    )
