"""The names of weights, masks and adapters are those of a real model's tensors."""

import pytest

from modelzoo import names
from modelzoo.training.checkpoints.snapshot import snapshot
from tests.support import TINY, make_run

SPARSE = {"algorithm": "static", "sparsity": 0.5}


@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoints_tensors_are_weights_and_masks(tied):
    run = make_run(sparsity=SPARSE, model={**TINY, "share_embedding_weights": tied})
    tensors = snapshot(run, "data")[0]["model"]
    weights, masks = names.split_masks(tensors)
    assert list(weights) == [n for n, _ in run.model.named_parameters()]
    assert masks.keys() == {p.name for p in run.sparsity.parameters} and masks
    assert tensors.keys() == weights.keys() | {names.name_mask(n) for n in masks}
    for name in masks:
        assert names.is_mask(names.name_mask(name)) and not names.is_mask(name)
        assert names.name_weight(names.name_mask(name)) == names.name_weight(name) == name
        assert names.name_mask(name) in tensors
    assert names.WORDS_WEIGHT in weights and (names.HEAD_WEIGHT in weights) is not tied


def test_adapters_are_what_they_add_to_a_model():
    section = {"soft_prompt": {"tokens": 3}, "lora": {"r": 4, "target_modules": "*"}}
    bare, whole = ({n for n, _ in make_run(**s).model.named_parameters()} for s in ({}, section))
    assert {n for n in whole if names.is_adapter(n)} == whole - bare
    assert {n for n in whole if names.is_lora(n)} == whole - bare - {names.SOFT_PROMPT}


def test_a_parameter_knows_its_layer():
    layers = {names.layer_of(n) for n, _ in make_run().model.named_parameters()}
    assert layers == {None, *range(TINY["num_hidden_layers"])}
    assert names.layer_of("model.transformer_decoder.layers.12.norm1.weight") == 12
    assert names.layer_of("model.layers.².weight") is None and names.layer_of(f"x.layers.{'9' * 5000}.w") is None
