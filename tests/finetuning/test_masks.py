"""Fine-tuning from a sparse checkpoint: masks lifted, kept or opened, exactly, and Adam's ages with them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelzoo.config.errors import UserError
from modelzoo.config.sections.finetune import Finetune
from modelzoo.config.sections.sparsity import SparsityGroup
from modelzoo.finetuning import masks as finetune_masks
from modelzoo.sparsity import schedules
from modelzoo.sparsity.parameter import PackedParameter, SparseParameter
from modelzoo.sparsity.select import live_count
from modelzoo.training.checkpoints.restore import restore
from modelzoo.training.checkpoints.snapshot import snapshot
from tests.support import TINY, batch, make_run, train_step


def pretrained(steps=3, sparsity=0.75, **init):
    """A checkpoint, as `checkpoint.load` gives it, of a short sparse run, and the run."""
    run = make_run(sparsity=sparsity, **init)
    for step in range(steps):
        train_step(run, batch(step), 1)
    files, saved = snapshot(run, "data")
    return {f: {n: x.clone() for n, x in part.items()} for f, part in files.items()}, saved, run


def start(section: Finetune, files, saved, **init):
    """A fine-tuning run that starts from the checkpoint, as tasks/finetune.py does it."""
    masks = finetune_masks.read_masks(files["model"])
    groups = finetune_masks.make_sparsity(
        section, (), masks, "ckpt", finetune_masks.read_patterns(saved, masks, "ckpt")
    )
    run = make_run(sparsity=[g.model_dump(mode="json") for g in groups], **init)
    if finetune_masks.needs_ages(section):
        finetune_masks.add_ages(run, run.init)
    restore(run, "ckpt", files, saved, None, finetune_masks.list_states(section, section.masks != "lift"))
    if finetune_masks.needs_ages(section):
        finetune_masks.start_ages(run, masks)
    return run, masks


def weights(run):
    return dict(run.model.named_parameters())


@pytest.mark.parametrize("optimizer", ["fresh", "keep"])
def test_lifted_weights_start_at_zero_and_learn(optimizer):
    files, saved, _ = pretrained()
    run, masks = start(Finetune(task="t", masks="lift", optimizer=optimizer), files, saved)
    assert run.step == 0 and not run.sparsity.parameters and masks
    for name, mask in masks.items():
        assert torch.equal(weights(run)[name], files["model"][name])
        assert (weights(run)[name][~mask] == 0).all()
    train_step(run, batch(9), 1)
    for name, mask in masks.items():
        moved = weights(run)[name][~mask]
        assert (moved != 0).float().mean() > 0.99  # every weight has a gradient


@pytest.mark.parametrize("mode", ["lift", {"open": {"steps": 2, "freq": 1}}])
def test_frozen_weights_stay_off_and_the_line_does_not_say_that_they_learn(mode):
    files, saved, _ = pretrained()
    section = Finetune(task="t", masks=mode)
    run, masks = start(section, files, saved, soft_prompt={"tokens": 2, "train": "prompt"})
    for step in range(3):
        train_step(run, batch(step), 1)
    off = sum(int((~mask).sum()) for mask in masks.values())
    assert all((weights(run)[name][~mask] == 0).all() for name, mask in masks.items())
    assert finetune_masks.describe_masks(section, masks, run.init.base_frozen).startswith(
        f"its weights are frozen: {off:,} that are off stay zero"
    )
    assert "learn" in finetune_masks.describe_masks(Finetune(task="t", masks="lift"), masks, frozen=False)


def test_a_lifted_weight_in_a_kept_optimizer_moves_like_a_newborn():
    """Adam's first step is lr * g / (|g| + eps), whatever the step count of the optimizer that it joins."""
    files, saved, _ = pretrained(steps=12)
    run, masks = start(Finetune(task="t", masks="lift", optimizer="keep"), files, saved)
    train_step(run, batch(9), 1)
    lr = run.lr()
    for name, mask in masks.items():
        size = weights(run)[name][~mask].abs()
        assert size.max() <= lr * 1.01 and size.median() > 0.9 * lr
        state_of = run.optimizer.state[weights(run)[name]]
        assert (state_of["born"][~mask] == 12).all() and (state_of["born"][mask] == 0).all()
        assert float(state_of["step"]) == 13


def test_kept_masks_stay_to_the_last_weight():
    files, saved, _ = pretrained()
    run, masks = start(Finetune(task="t", masks="keep"), files, saved)
    for step in range(5):
        train_step(run, batch(step), 1)
    assert {p.name for p in run.sparsity.parameters} == masks.keys()
    for name, mask in masks.items():
        assert torch.equal(weights(run)[name] != 0, mask & (weights(run)[name] != 0))
        assert torch.equal(run.sparsity.state_dict()[f"{name}_mask"], mask)
        assert (run.optimizer.state[weights(run)[name]]["exp_avg"][~mask] == 0).all()


WIDE = {**TINY, "hidden_size": 256, "filter_size": 512, "num_hidden_layers": 1}
UPDATE = {"freq": 2}
PATTERNS = {
    "blocks": {"sparsity": 0.75, "block": [32, 32]},
    "rigl blocks": {"algorithm": "rigl", "sparsity": 0.75, "block": [32, 32], "update": UPDATE},
    "erk blocks": {"sparsity": 0.75, "block": [32, 32], "distribution": "erk"},
    "inputs": {"sparsity": 0.75, "shared_inputs": 4},
    "nm": {"algorithm": "set", "nm": [2, 4], "update": UPDATE},
    "gmp blocks": {
        "algorithm": "gmp",
        "sparsity": {"type": "cubic", "final": 0.9, "end": 4},
        "block": [32, 64],
        "update": UPDATE,
    },
    "permuted": {
        "sparsity": 0.75,
        "block": [32, 32],
        "init_method": "topk",
        "permute_inputs": "start",
    },
    "single weights": {"sparsity": 2 / 3},
}


@pytest.mark.parametrize("name", PATTERNS)
def test_kept_masks_keep_their_pattern_and_so_may_be_packed(name):
    """Whatever made them: the run on what `storage` makes of them is the run under masks."""
    # `auto` packs what pays, which is the processor's.
    given = PATTERNS[name] if name == "nm" else {**PATTERNS[name], "storage": "packed"}
    files, saved, before = pretrained(sparsity=given, model=WIDE)
    if given.get("algorithm", "static") != "static":
        assert before.sparsity.groups[0].changes
    plain = {**saved, "sparsity": [{**g, "storage": "masked"} for g in saved["sparsity"]]}
    section = Finetune(task="t", masks="keep")
    run, masks = start(section, files, saved, model=WIDE)
    whole, _ = start(section, files, plain, model=WIDE)
    packs = {type(p) is PackedParameter for p in run.sparsity.parameters}
    assert packs == {name != "nm"} and {type(p) for p in whole.sparsity.parameters} == {SparseParameter}
    for step in range(4):
        a, b = (train_step(r, batch(step), 1) for r in (whole, run))
        assert b.loss == pytest.approx(a.loss, abs=1e-4) and b.grad_norm == pytest.approx(a.grad_norm, rel=1e-3)
    for r in (run, whole):
        assert {p.name for p in r.sparsity.parameters} == masks.keys()
        assert all(torch.equal(p.mask.cpu(), masks[p.name]) for p in r.sparsity.parameters)
    assert {g.algorithm.group.pattern for g in run.sparsity.groups} == {SparsityGroup.model_validate(given).pattern}


def test_a_pattern_that_the_masks_do_not_have_is_not_carried():
    """The sparsity section of an imported checkpoint is its config's, whatever its masks are."""
    files, saved, _ = pretrained()
    masks = finetune_masks.read_masks(files["model"])
    for pattern in ({"block": [4, 4]}, {"shared_inputs": 4}, {"nm": [1, 4]}, {"block": [1, 2], "storage": "packed"}):
        other = [{**g, **pattern} for g in saved["sparsity"]]
        assert finetune_masks.read_patterns({**saved, "sparsity": other}, masks, "ckpt") == {}
        run, _ = start(Finetune(task="t", masks="keep"), files, {**saved, "sparsity": other})
        assert all(torch.equal(p.mask, masks[p.name]) for p in run.sparsity.parameters)
    uneven = {n: torch.zeros_like(m) for n, m in masks.items()}
    for m in uneven.values():
        m[: len(m) // 4, 0] = True  # whole inputs, but one group has more of them than the others
    inputs = [{**g, "shared_inputs": 4} for g in saved["sparsity"]]
    assert finetune_masks.read_patterns({**saved, "sparsity": inputs}, uneven, "ckpt") == {}


@given(st.integers(1, 10**7).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_the_level_of_a_mask_means_its_count(counts):
    numel, live = counts
    mask = torch.arange(numel) < live
    assert live_count(numel, finetune_masks._level(mask)) == live and 0 <= finetune_masks._level(mask) < 1


def test_masks_open_step_by_step_until_every_weight_is_live():
    files, saved, _ = pretrained()
    run, masks = start(Finetune(task="t", masks={"open": {"steps": 7, "freq": 3}}), files, saved)
    seen = [run.sparsity.actual()]
    live = {n: m.clone() for n, m in masks.items()}
    for step in range(9):
        train_step(run, batch(step), 1)
        seen.append(run.sparsity.actual())
        for p in run.sparsity.parameters:
            assert (p.mask | ~live[p.name]).all(), "an open weight closed again"
            live[p.name] = p.mask.clone()
    assert seen[0] == seen[2] == pytest.approx(0.75) and seen[3] == seen[5] == pytest.approx(0.75 * 4 / 7, abs=0.01)
    assert seen[7] == seen[9] == 0.0


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 400), st.integers(1, 60), st.floats(0.001, 0.999))
def test_the_gradual_schedule_falls_and_ends_at_exactly_nothing(steps, freq, share):
    mask = torch.arange(1000) >= round(1000 * share)
    section = Finetune(task="t", masks={"open": {"steps": steps, "freq": freq}})
    (group,) = finetune_masks.make_sparsity(section, (), {"w": mask.view(10, 100)}, "p")
    levels = [schedules.held(group, s) for s in range(steps + 2)]
    assert levels == sorted(levels, reverse=True)
    assert levels[steps] == levels[steps + 1] == 0.0
    assert math.isclose(levels[0], 1 - int(mask.sum()) / 1000)


def test_a_sparse_checkpoint_is_lifted_only_where_that_is_said():
    files, _, _ = pretrained()
    masks = finetune_masks.read_masks(files["model"])
    with pytest.raises(UserError, match=r"ckpt: is sparse \(75.00% of .*finetune.masks: lift"):
        finetune_masks.make_sparsity(Finetune(task="t"), (), masks, "ckpt")
    for mode in ("keep", {"open": {"steps": 5}}):
        with pytest.raises(UserError, match="ckpt: is dense"):
            finetune_masks.make_sparsity(Finetune(task="t", masks=mode), (), {}, "ckpt")
    assert finetune_masks.make_sparsity(Finetune(task="t", masks="lift"), (), {}, "ckpt") == ()


@pytest.mark.parametrize("key,value", [
    ("model", 3), ("model", None), ("sparsity", 3), ("sparsity", [{"sparsity": "x"}]),
    ("sparsity", [3]), ("sparsity", {"a": 1}),
])  # fmt: skip
def test_a_checkpoint_s_state_of_another_form_is_one_line(key, value):
    files, saved, _ = pretrained()
    masks = finetune_masks.read_masks(files["model"])
    with pytest.raises(UserError, match=rf"^ckpt: its state: {key}.* it is not what this trainer writes$"):
        finetune_masks.read_patterns({**saved, key: value}, masks, "ckpt")
