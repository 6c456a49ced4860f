"""The table of fine-tuning runs: means and intervals against SciPy's."""

import numpy as np
from scipy import stats

from modelzoo.finetuning.task import format_table


def make_results(values: np.ndarray) -> list[dict]:
    """Runs with these accuracies [folds, seeds]."""
    score = lambda v: {"n": 50, "metrics": {"accuracy": v}, "intervals": {}, "majority": {"accuracy": 0.5}}
    return [{"fold": f, "seed": s, "scores": {"dev": score(float(v))}} for (f, s), v in np.ndenumerate(values)]


def test_runs_of_one_fold_are_no_independent_runs():
    draw = np.random.default_rng(0)
    values = 0.6 + draw.normal(0, 0.05, (4, 1)) + draw.normal(0, 0.001, (4, 5))  # seeds hardly differ, folds do
    folds = values.mean(1)
    low, high = stats.ttest_1samp(folds, 0).confidence_interval(0.95)
    head, line = format_table(make_results(values)).splitlines()
    assert (
        f"{folds.mean():.4f}  (mean of 20: 95 % of {low:.4f} to {high:.4f}, sd {folds.std(ddof=1):.4f} over 4 folds"
        in line
    )
    assert "20 runs; of the weights that scored best on it" in head
    low, high = stats.ttest_1samp(values[0], 0).confidence_interval(0.95)
    line = format_table(make_results(values[:1])).splitlines()[1]
    assert f"(mean of 5: 95 % of {low:.4f} to {high:.4f}, sd {values[0].std(ddof=1):.4f};" in line
    assert "(no interval;" in format_table(make_results(values[:1, :1]))
