"""A model with its cache computes what it computes of whole texts: every kind of position, rows of any lengths."""

import pytest
import torch

from modelzoo.models.gpt import GPTModel
from modelzoo.models.quick import use_quick
from tests.support import tiny

ROTARY = {"position_embedding_type": "rotary", "rotary_dim": 4}
KINDS = {
    "learned": {},
    "learned, offset": {"position_embedding_offset": 3},
    "fixed": {"position_embedding_type": "fixed"},
    "none": {"position_embedding_type": None},
    "rotary": ROTARY,
    "rotary, stretched": {**ROTARY, "pos_scaling_factor": 2.5},
    "alibi": {"position_embedding_type": "alibi"},
    "alibi, three heads": {"position_embedding_type": "alibi", "num_heads": 3, "hidden_size": 18},
    "unscaled": {"attention_type": "dot_product"},
    "by layer, wide": {"scale_qk_dot_by_layer_idx": True, "attention_inner_dim": 24},
    "llama": {**ROTARY, "norm_type": "rmsnorm", "nonlinearity": "swiglu", "embedding_layer_norm": True},
    "shared keys and values": {
        **ROTARY,
        "attention_module": "multiquery_attention",
        "extra_attention_params": {"num_kv_groups": 2},
        "num_heads": 4,
    },
    "shared keys and values, alibi": {
        "attention_module": "multiquery_attention",
        "extra_attention_params": {"num_kv_groups": 1},
        "position_embedding_type": "alibi",
    },
    "parallel": {"name": "gptj", "rotary_dim": 4},
    "parallel, two norms": {"name": "gptj", "use_untied_layer_norm": True},
    "mup": {"mup_base_hidden_size": 8, "mup_base_filter_size": 24, "embeddings_scale": 7.0},
}


def draw(**fields) -> GPTModel:
    """A model whose weights are all far from their initial values."""
    model = GPTModel(tiny(**fields)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3 + ("norm" in name or "ln_f" in name))
    return model


def whole(model: GPTModel, ids: list[int]) -> torch.Tensor:
    """[t, vocab] logits of a whole pass."""
    return model.model.logits(model.model.hidden(torch.tensor([ids])))[0]


@torch.no_grad()
@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_stretches_of_any_length_are_the_whole_text(name, quick):
    """Rows of unlike lengths take unlike stretches, padded on the right; one leaves; all ends at the context's end."""
    model = draw(**KINDS[name])
    generator = torch.Generator().manual_seed(2)
    texts = [torch.randint(0, 37, (12,), generator=generator).tolist() for _ in range(3)]
    expected = [whole(model, ids) for ids in texts]
    assert expected[0].std() > 0.1
    if quick:
        use_quick(model)
    rows, cache, taken = [0, 1, 2], model.model.make_cache(3), [0, 0, 0]
    stretches = [(3, 1, 5), (1, 1, 1), (2, 4, 1), (1, 1, None), (1, 1, None), (4, 4, None)]
    for counts in stretches:
        if len(rows) == 3 and counts[2] is None:
            rows = [1, 0]  # the third leaves, the others change places
            cache.keep(rows)
        t = max(c for c in counts if c)
        padded = [(texts[r][taken[r] : taken[r] + counts[r]] + [0] * t)[:t] for r in rows]
        found = model.model.logits(model.model.hidden(torch.tensor(padded), past=cache))
        for row, r in zip(found, rows, strict=True):
            part = expected[r][taken[r] : taken[r] + counts[r]]
            torch.testing.assert_close(row[: counts[r]], part, rtol=1e-5, atol=1e-5)
            taken[r] += counts[r]
        cache.trim([taken[r] for r in rows])
    assert taken == [12, 12, 7]


@torch.no_grad()
def test_a_cache_that_grows_holds_what_it_held():
    model = draw(max_position_embeddings=160)
    ids = torch.randint(0, 37, (160,), generator=torch.Generator().manual_seed(3)).tolist()
    cache = model.model.make_cache(1)
    found = [model.model.logits(model.model.hidden(torch.tensor([[i]]), past=cache))[0, 0] for i in ids]
    torch.testing.assert_close(torch.stack(found), whole(model, ids), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_first_stretch_has_the_bits_of_a_pass_without_cache():
    for fields in ({}, {"position_embedding_type": "alibi"}):
        model, ids = draw(**fields), [3, 1, 4, 1, 5]
        hidden = model.model.hidden(torch.tensor([ids]), past=model.model.make_cache(1))
        assert torch.equal(model.model.logits(hidden)[0], whole(model, ids))
