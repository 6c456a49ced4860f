"""The FLOPs ledger against the closed formula, and RigL's average against the paper's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelzoo.config.model import GPTConfig
from modelzoo.models.shapes import parameters
from modelzoo.sparsity import flops


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 4096), st.integers(1, 60_000), st.integers(0, 4))
def test_the_closed_formula(layers, heads, context, vocab, quarters):
    width = heads * 4
    config = GPTConfig(
        hidden_size=width, num_heads=heads, num_hidden_layers=layers, filter_size=4 * width, vocab_size=vocab
    )
    live = {n: s.numel * (4 - quarters) // 4 for n, s in parameters(config).items() if s.kind == "linear"}
    cost = flops.per_token(live, layers, width, context, width, vocab)
    sparsity = quarters / 4
    assert cost.total == 6 * (1 - sparsity) * 12 * layers * width**2 + 12 * layers * context * width + 6 * width * vocab
    assert cost.total == cost.linear + cost.attention + cost.head


def test_one_layer_counted_multiplication_by_multiplication():
    # forward of one token, 2 FLOPs a multiply-add: each matrix, T scores and T values over the width, one logit a word
    layers, width, context, vocab, ffn = 1, 3, 5, 7, 11
    matrices = {"q": 9, "k": 9, "v": 9, "o": 9, "in": width * ffn, "out": ffn * width}
    forward = 2 * (sum(matrices.values()) + 2 * context * width + width * vocab)
    assert flops.per_token(matrices, layers, width, context, width, vocab).total == 3 * forward


@given(st.floats(1, 1e12), st.floats(1, 1e12), st.integers(1, 10_000))
def test_rigls_average_is_the_papers(f_s, f_d, dt):
    # (3 fS dT + 2 fS + fD) / (dT + 1): one update step after dT plain ones
    expected = (3 * f_s * dt + 2 * f_s + f_d) / (dt + 1)
    assert flops.rigl_average(3 * f_s, 3 * f_d, 1, dt + 1) == pytest.approx(expected, rel=1e-9)


def test_rigls_average_at_the_ends():
    assert flops.rigl_average(3.0, 12.0, 0, 100) == 3.0  # no updates: plain sparse training
    assert flops.rigl_average(3.0, 12.0, 100, 100) == 2 * 1.0 + 4.0  # every step wants the dense weight gradient
