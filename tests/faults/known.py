"""Faults that were found and are not corrected yet: `make test` passes over them, `make faults` does not.

Empty this list as they are corrected. Each line: the part, the verdict, a pattern of its detail, and what is wrong.
"""

import re

from tests.faults.part import Verdict

KNOWN: tuple[tuple[str, str, str, str], ...] = ()


def is_known(part: str, verdict: Verdict) -> bool:
    """Whether a verdict is one of the known faults."""
    return any(
        re.fullmatch(parts, part) and kind == verdict.kind and re.search(pattern, verdict.detail, re.S)
        for parts, kind, pattern, _ in KNOWN
    )
