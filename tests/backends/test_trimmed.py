"""Padding at the end of a batch is not computed, and nothing that counts changes."""

import torch

from modelzoo.backends.step import trim_padding
from tests.support import TINY, batch, make_run, train_step


def test_only_columns_that_no_row_counts_go():
    rows = batch(size=3, length=100)
    rows["attention_mask"][:] = 0
    rows["attention_mask"][1, 40] = 1
    cut = trim_padding(rows)
    assert {x.shape for x in cut.values()} == {(3, 64)}
    for name, x in cut.items():
        assert torch.equal(x, rows[name][:, :64])
    rows["attention_mask"][2, 99] = 1
    assert trim_padding(rows)["labels"].shape == (3, 100)


def test_a_step_on_padded_rows_equals_the_step_on_short_ones():
    model = {**TINY, "max_position_embeddings": 128}
    short = batch(size=4, length=32)
    long = {n: torch.cat([x, torch.zeros(4, 96, dtype=x.dtype)], 1) for n, x in short.items()}
    runs = [make_run(model=model), make_run(model=model)]
    steps = [train_step(run, rows, 2) for run, rows in zip(runs, (short, long), strict=True)]
    assert steps[0] == steps[1]
    for a, b in zip(runs[0].model.parameters(), runs[1].model.parameters(), strict=True):
        assert torch.equal(a, b)
