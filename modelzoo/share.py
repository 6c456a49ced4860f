"""Which share of a job this process does: number I of N, given or from a cluster's scheduler."""

import os
from collections.abc import Mapping

from modelzoo.config.errors import UserError
from modelzoo.reading import is_number

OPTION = "--share"
SLURM, TORCHRUN = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"), ("RANK", "WORLD_SIZE")
_COUNTED = ("SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP")  # where an array begins, and in what steps it counts


def parse_share(text: str | None, environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """`I/N` as (I, N); None reads it from a Slurm array or torchrun, and is everything, (0, 1), where there is neither.

    Args:
        environment: a Slurm array may begin anywhere and count in steps; its first task is share 0.

    Raises:
        UserError: not I/N with 0 <= I < N.
    """
    where = OPTION
    if text is None:
        names = next((names for names in (SLURM, TORCHRUN) if all(n in environment for n in names)), None)
        if names is None:
            return 0, 1
        found = {n: environment[n] for n in (*names, *(_COUNTED if names == SLURM else ())) if n in environment}
        where = f"{', '.join(f'{n}={v[:40]!a}' for n, v in found.items())}: give {OPTION},"
        if not all(map(is_number, found.values())):
            raise UserError(f"{where} or start by Slurm or torchrun, which set numbers")
        task, count = (int(found[n]) for n in names)
        first, step = (int(found.get(n, d)) for n, d in zip(_COUNTED, ("0", "1"), strict=True))
        text = f"{(task - first) // max(step, 1)}/{count}"
    i, slash, n = text.partition("/")
    if not (slash and is_number(i) and is_number(n) and int(i) < int(n)):
        raise UserError(f"{where} {text[:80]!a}: write I/N with 0 <= I < N, for example 0/8")
    return int(i), int(n)
