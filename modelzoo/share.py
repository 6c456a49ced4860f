"""Which share of a job this process does: number I of N, given or from a cluster's scheduler."""

import os
from collections.abc import Mapping

from modelzoo.config.errors import UserError

OPTION = "--share"
SLURM, TORCHRUN = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"), ("RANK", "WORLD_SIZE")


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
        text, where = "/".join(environment[n] for n in names), f"{' and '.join(names)}; give {OPTION}:"
        if names == SLURM and text.replace("/", "").isdecimal():
            first, step = (int(environment.get(f"SLURM_ARRAY_TASK_{n}", d)) for n, d in (("MIN", 0), ("STEP", 1)))
            text = f"{(int(environment[SLURM[0]]) - first) // max(step, 1)}/{environment[SLURM[1]]}"
    i, slash, n = text.partition("/")
    if not (slash and i.isdecimal() and n.isdecimal() and int(i) < int(n)):
        raise UserError(f"{where} {text}: write I/N with 0 <= I < N, for example 0/8")
    return int(i), int(n)
