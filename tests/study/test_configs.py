"""The studies in configs/: every run's config is whole, and they compare what they say they compare."""

from pathlib import Path

import pytest

from modelzoo.data import manifest
from modelzoo.planning import plan
from modelzoo.study.matrix import matrix as grid
from modelzoo.training.runs.length import total_steps

STUDIES = sorted((Path(__file__).resolve().parents[2] / "configs" / "study").glob("*.yaml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_every_run_is_whole_and_the_budget_is_met(path):
    matrix = grid.read_matrix(str(path), [], None)
    assert len({c.name for c in matrix.cells}) == len(matrix.cells)
    for cell in matrix.cells:
        init = cell.config.trainer.init
        assert init.loop.max_steps == cell.steps and total_steps(cell.config) == cell.steps
        budget = matrix.study.of(cell.setting).budget
        tokens = cell.steps * cell.config.trainer.fit.train_dataloader.batch_size * manifest.find_context(cell.config)
        spent, meant = (cell.flops, budget.flops) if budget.flops else (tokens, budget.tokens)
        assert abs(spent / meant - 1) < 0.5 / cell.steps + 0.01
        assert sum(x["total_iters"] for x in _phases(init)) == cell.steps


def _phases(init) -> list[dict]:
    return [s.value.model_dump() for s in init.schedulers[0].value.schedulers]


def test_large_sparse_has_the_live_weights_of_small_dense():
    matrix = grid.read_matrix(str(next(p for p in STUDIES if p.stem == "pubmed")), [], None)
    live = {}
    for cell in matrix.cells:
        made = plan.make_plan(cell.config)
        live[cell.label] = made.live - (made.total - made.sparse_total if made.sparse_total else 0)
    small = plan.make_plan(next(c.config for c in matrix.cells if c.label == "small-dense"))
    matrices = small.dense.linear / 6
    assert live["large-static75"] == matrices == 1_769_472
