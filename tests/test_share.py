"""A process's share: given, or as Slurm and torchrun say; the shares of a job cover it once."""

import pytest

from modelzoo.config.errors import UserError
from modelzoo.share import parse_share


@pytest.mark.parametrize("ids", [range(5), range(3, 8), range(1, 50, 10)])
def test_the_tasks_of_a_slurm_array_are_all_the_shares(ids):
    """`--array=0-4`, `3-7`, `1-49:10`: Slurm's own variables."""
    facts = {"COUNT": len(ids), "MIN": ids[0], "STEP": ids.step}
    common = {f"SLURM_ARRAY_TASK_{k}": str(v) for k, v in facts.items()}
    found = [parse_share(None, {**common, "SLURM_ARRAY_TASK_ID": str(i)}) for i in ids]
    assert found == [(i, 5) for i in range(5)]


def test_what_is_given_goes_before_what_is_found():
    torchrun = {"RANK": "3", "WORLD_SIZE": "4"}
    slurm = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "2"}
    assert parse_share(None, {}) == (0, 1)
    assert parse_share(None, torchrun) == (3, 4)
    assert parse_share(None, torchrun | slurm) == (1, 2)
    assert parse_share("5/7", torchrun | slurm) == (5, 7)


@pytest.mark.parametrize("text", ["3/3", "1", "a/b", "-1/2", "/", "", "1/2/3", "0/0", "²/3", f"1/{'9' * 5000}"])
def test_nonsense_is_refused(text):
    with pytest.raises(UserError, match=r"--share .*0 <= I < N"):
        parse_share(text, {})


@pytest.mark.parametrize(
    "found",
    [
        {"SLURM_ARRAY_TASK_ID": "9", "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": "1"},  # --array=1,9
        {"SLURM_ARRAY_TASK_ID": "x", "SLURM_ARRAY_TASK_COUNT": "2"},
        {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": "x"},
        {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_STEP": ""},
        {"SLURM_ARRAY_TASK_ID": "9" * 5000, "SLURM_ARRAY_TASK_COUNT": "2"},
        {"RANK": "", "WORLD_SIZE": "2"},
    ],
)
def test_a_scheduler_that_makes_no_sense_is_named(found):
    with pytest.raises(UserError, match=rf"{next(iter(found))}=.*give --share"):
        parse_share(None, found)
