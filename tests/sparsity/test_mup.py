"""Sparse muP: the scale of what a layer computes, and of how a step changes it, does not depend on the density."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from modelzoo.config.sections.sparsity import SparsityGroup
from modelzoo.models.shapes import list_parameters
from modelzoo.planning.plan import count_first_masks
from modelzoo.sparsity.mup import density_ratios
from tests.support import TINY, batch, config, make_run, train_step

WIDE = {**TINY, "hidden_size": 128, "filter_size": 512}
FFN = "model.transformer_decoder.layers.0.ffn.ffn.0.linear_layer.weight"
LR = 1e-3


def run_at(sparsity: float, **group):
    optimizer = {"AdamW": {"lr": LR, "weight_decay": 0.0, "betas": [0.9, 0.95], "eps": 1e-12}}
    return make_run(model=WIDE, optimizer=optimizer, sparsity={"sparsity": sparsity, **group})


def coordinates(run) -> tuple[float, float]:
    """The scale (rms) of a feed-forward layer's output for unit inputs, and the most that one step adds to it."""
    weight = dict(run.model.named_parameters())[FFN]
    x = torch.randn(WIDE["hidden_size"], 256, generator=torch.Generator().manual_seed(0))
    before, output = weight.detach().clone(), (weight.detach() @ x).square().mean().sqrt()
    train_step(run, batch(), 1)
    change = weight.detach() - before
    return float(output), float(change.abs().sum(1).mean())  # for inputs of size 1 whose signs agree with the change's


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.75, 0.9])
def test_activations_and_updates_keep_their_scale(sparsity):
    """The coordinate check: against the dense layer, corrected ones agree and standard ones fall with the density."""
    dense = coordinates(run_at(0.0))
    corrected, standard = coordinates(run_at(sparsity, mup_base_density=1.0)), coordinates(run_at(sparsity))
    density = 1 - sparsity
    assert corrected[0] == pytest.approx(dense[0], rel=0.05)
    assert standard[0] == pytest.approx(dense[0] * density**0.5, rel=0.05)
    # Adam's first step moves each live weight by the learning rate: together by lr * fan_in * density
    assert corrected[1] == pytest.approx(dense[1], rel=0.02)
    assert standard[1] == pytest.approx(dense[1] * density, rel=0.02)


@given(st.floats(0.01, 0.99), st.floats(0.01, 1.0), st.sampled_from(["uniform", "erk"]))
def test_ratios_are_live_weights_over_all_over_the_base(sparsity, base, distribution):
    group = {"sparsity": sparsity, "distribution": distribution, "mup_base_density": base}
    init = config(model=WIDE, sparsity=group).trainer.init
    shapes, live = list_parameters(init.model), count_first_masks(init)
    assert density_ratios(shapes, init.sparsity) == pytest.approx({n: live[n] / shapes[n].numel / base for n in live})


def test_at_the_base_density_nothing_changes():
    plain, same = run_at(0.75), run_at(0.75, mup_base_density=0.25)
    for (name, a), (_, b) in zip(plain.model.named_parameters(), same.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert {g["lr_scale"] for g in same.optimizer.param_groups} == {1.0}


def test_it_multiplies_with_mups_width():
    model = {**WIDE, "mup_base_hidden_size": 32, "mup_base_filter_size": 128}
    run = make_run(model=model, sparsity={"sparsity": 0.5, "mup_base_density": 1.0})
    scales = {n: g["lr_scale"] for g in run.optimizer.param_groups for n in g["names"]}
    assert scales[FFN] == 32 / 128 / 0.5 and scales["model.ln_f.weight"] == 1.0


@pytest.mark.parametrize(
    "group",
    [
        {"algorithm": "gmp", "sparsity": {"type": "cubic", "final": 0.8, "end": 5}},
        {"sparsity": 0.5, "init_method": "from_zeros"},
    ],
)
def test_it_wants_one_density(group):
    with pytest.raises(ValidationError, match="mup_base_density"):
        SparsityGroup.model_validate({**group, "mup_base_density": 1.0})
