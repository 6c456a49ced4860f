"""Keyed draws: the same for the same key for ever, since checkpoints and resumed runs rest on them."""

import hashlib

import pytest
import torch

from modelzoo.draws import make_generator, make_seed, seed_torch


def test_seeds_stay_what_they_were():
    assert make_seed(1, "a.weight") == 2792999029128996674  # a model's initial weights
    assert make_seed(7, "a.weight", 30) == 2304929853453250510  # a mask's random scores
    assert make_seed(3, 11, bits=56) == 17642593611817588  # dropout of a step


@pytest.mark.parametrize("bits", [8, 56, 63, 64])
def test_a_seed_is_the_first_bits_of_the_keys_hash(bits):
    whole = int(hashlib.sha256(b"5/layer.0.weight/12").hexdigest(), 16)
    assert make_seed(5, "layer.0.weight", 12, bits=bits) == whole >> (256 - bits)


def test_a_draw_depends_on_its_key_alone():
    first = torch.rand(5, generator=make_generator(1, "a", 0))
    torch.manual_seed(9)
    torch.rand(3, generator=make_generator(1, "b", 0))
    assert torch.equal(first, torch.rand(5, generator=make_generator(1, "a", 0)))
    others = [
        torch.rand(5, generator=make_generator(*key)) for key in ((2, "a", 0), (1, "b", 0), (1, "a", 1), (1, "a"))
    ]
    assert not any(torch.equal(first, x) for x in others)


@pytest.mark.parametrize("seed", [0, 17642593611817588, 2**56 - 1])
def test_a_seeded_cpu_draws_what_it_does_after_manual_seed(seed):
    torch.manual_seed(seed)
    expected = torch.rand(5), torch.nn.functional.dropout(torch.ones(50), 0.3)
    torch.manual_seed(1)
    seed_torch(seed, torch.device("cpu"))
    assert torch.equal(expected[0], torch.rand(5))
    assert torch.equal(expected[1], torch.nn.functional.dropout(torch.ones(50), 0.3))
