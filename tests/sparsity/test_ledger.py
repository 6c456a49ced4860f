"""The FLOPs a run counts as it goes: by hand, against torch's own counter on the dense model, and through a resume."""

import itertools

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from modelzoo.models.gpt import loss_denominator
from modelzoo.training.checkpoints.restore import restore
from modelzoo.training.checkpoints.snapshot import snapshot
from tests.support import TINY, batch, make_run, train_step

# tests.support's model: 2 layers of 4 matrices 16 x 16 and 2 of 16 x 32, 37 words; batches of 4 x 12 tokens
WEIGHTS = 2 * (4 * 16 * 16 + 2 * 16 * 32)
FIXED = 12 * 2 * 12 * 16 + 6 * 16 * 37  # attention and head, a token
TOKENS = 4 * 12
DENSE = TOKENS * (6 * WEIGHTS + FIXED)
UPDATE = {"freq": 3, "start": 3, "stop": 7}  # masks change after steps 3 and 6


def ledger(steps: int, **sections) -> tuple[list[int], int]:
    """FLOPs of each step, and the dense total."""
    run, seen = make_run(**sections), [0]
    for i in range(steps):
        train_step(run, batch(i), 1)
        seen.append(run.ledger.sparse)
    return [b - a for a, b in itertools.pairwise(seen)], run.ledger.dense


def test_dense_equals_torchs_counter():
    run, data = make_run(), batch()
    denominator = loss_denominator(run.init.model, data["attention_mask"])
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run.model(data, denominator).backward()
    assert counter.get_total_flops() == DENSE
    assert ledger(3) == ([DENSE] * 3, 3 * DENSE)


def test_static_masks_save_all_three_passes():
    live = TOKENS * (6 * WEIGHTS // 4 + FIXED)
    assert ledger(4, sparsity={"sparsity": 0.75}) == ([live] * 4, 4 * DENSE)


def test_rigls_updates_take_the_dense_weight_gradient():
    plain = TOKENS * (6 * WEIGHTS // 4 + FIXED)
    update = TOKENS * (4 * WEIGHTS // 4 + 2 * WEIGHTS + FIXED)
    rigl = {"algorithm": "rigl", "sparsity": 0.75, "update": UPDATE}
    assert ledger(8, sparsity=rigl)[0] == [plain, plain, update, plain, plain, update, plain, plain]
    assert ledger(8, sparsity={**rigl, "algorithm": "set"})[0] == [plain] * 8  # grows at random: asks for nothing


def test_gmp_counts_the_masks_that_each_step_trained_with():
    schedule = {"type": "linear", "init": 0.0, "slope": 0.125}
    gmp = {"algorithm": "gmp", "sparsity": schedule, "update": {"steps": [2, 4]}}
    at = lambda sparsity: TOKENS * (6 * int(WEIGHTS * (1 - sparsity)) + FIXED)
    assert ledger(6, sparsity=gmp)[0] == [at(0), at(0), at(0.25), at(0.25), at(0.5), at(0.5)]


def test_a_frozen_weight_has_no_gradient_of_its_own():
    run = make_run()
    run.ledger.add(run.init.model, run.shapes, frozenset(run.shapes), run.sparsity, TOKENS, 12, 1)
    assert run.ledger.sparse == TOKENS * (4 * WEIGHTS + 12 * 2 * 12 * 16 + 4 * 16 * 37)


@pytest.mark.parametrize("untied", [{}, {"share_embedding_weights": False}], ids=["tied", "untied"])
def test_embeddings_are_looked_up_not_multiplied(untied):
    run = make_run(model={**TINY, **untied})
    run.count_flops(1, 12)
    assert run.ledger.sparse == 6 * WEIGHTS + FIXED


@pytest.mark.parametrize("adapters", [{}, {"lora": {}}, {"soft_prompt": {"tokens": 3}}], ids=["none", "lora", "prompt"])
def test_what_counts_as_frozen_is_what_trains_no_more(adapters):
    """The names that FLOPs are counted by say of each parameter what torch says of it."""
    run = make_run(**adapters)
    parameters = dict(run.model.named_parameters())
    assert list(parameters) == list(run.shapes)
    assert run.frozen == {n for n, p in parameters.items() if not p.requires_grad}


def test_a_skipped_step_was_computed_and_counts():
    run = make_run(loop={"max_steps": 5, "on_nonfinite": "skip"})
    with torch.no_grad():
        next(run.model.parameters())[0, 0] = float("nan")
    data = batch()
    data["input_ids"][0, 0] = 0
    assert train_step(run, data, 1).skipped
    assert (run.ledger.sparse, run.tokens) == (DENSE, 0)


def test_the_count_goes_through_a_checkpoint():
    rigl = {"algorithm": "rigl", "sparsity": 0.75, "update": UPDATE}
    run, other = make_run(sparsity=rigl), make_run(sparsity=rigl)
    for i in range(4):
        train_step(run, batch(i), 1)
    files, saved = snapshot(run, "f")
    restore(other, "x", files, saved, "f")
    assert other.ledger == run.ledger
    train_step(run, batch(4), 1), train_step(other, batch(4), 1)
    assert other.ledger == run.ledger
