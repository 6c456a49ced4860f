"""What fine-tuning regained and what soft prompts learned, from folders made by hand: the numbers are theirs."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from modelzoo.names import SOFT_PROMPT, WORDS_WEIGHT
from modelzoo.study.figures import finetuned
from modelzoo.study.figures.draw import coarse
from modelzoo.study.figures.layers import changes
from modelzoo.study.runs.results import Group, group_runs, read_run


def tuned(runs, root, scores: dict[int, list[float]]) -> list[str]:
    """Copies of a run, as `<root>/fold_0/seed_N`, with a dev score every 4 steps."""
    folders = []
    for seed, values in scores.items():
        folder = root / "fold_0" / f"seed_{seed}"
        shutil.copytree(runs / "dense-seed1", folder)
        text = (folder / "config.yaml").read_text()
        (folder / "config.yaml").write_text(text.replace("seed: 1\n", f"seed: {seed}\n", 1))
        with open(folder / "metrics.jsonl", "a") as file:
            for i, value in enumerate(values, 1):
                file.write(json.dumps({"step": 4 * i, "kind": "dev", "accuracy": value}) + "\n")
        folders.append(str(folder))
    return folders


def test_recovery_is_the_mean_over_seeds_at_shared_steps(runs, tmp_path):
    scores = {1: [0.4, 0.5, 0.7], 2: [0.5, 0.6]}  # the second stopped early
    (group,) = group_runs([read_run(f) for f in tuned(runs, tmp_path, scores)])
    assert len(group.runs) == 2 and group.label.endswith("fold_0")
    panel = finetuned.draw_recovery([group])
    assert [r[1] for r in panel.rows] == [4, 8]
    expected = stats.ttest_1samp([0.5, 0.6], 0).confidence_interval(0.95)
    assert panel.rows[1][3:] == pytest.approx((0.55, expected.low, expected.high, 2))


def test_a_prompt_made_of_words_is_nearest_to_them(runs, tmp_path):
    folder = tmp_path / "prompted"
    shutil.copytree(runs / "dense-seed1", folder)
    path = folder / "checkpoints" / "step_12" / "model.safetensors"
    weights = safetensors.numpy.load_file(path)
    chosen = [5, 31, 7]
    weights[SOFT_PROMPT] = 3.0 * weights[WORDS_WEIGHT][chosen]  # length does not matter to the cosine
    safetensors.numpy.save_file(weights, path)
    panel = finetuned.tabulate_nearest_tokens([Group("p", [read_run(str(folder))])])
    assert [r[2].split(", ")[0] for r in panel.rows] == [f"#{t} 1.00" for t in chosen]  # no tokenizer here: ids
    assert finetuned.tabulate_nearest_tokens([Group("d", [read_run(str(runs / "dense-seed1"))])]) is None


@given(st.integers(0, 1000))
def test_growth_and_drop_turn_one_mask_into_the_other(seed):
    draw = np.random.default_rng(seed)
    before, after = draw.random((2, 9, 13)) < 0.4
    grown, dropped = changes(before, after)
    assert not (grown & dropped).any() and np.array_equal((before | grown) & ~dropped, after)
    assert coarse(grown, 64).sum() - coarse(dropped, 64).sum() == after.sum() - before.sum()
