"""What a plan counts for steps that ask for dense gradients is what a run counts, and holds, at those steps."""

import pytest

from modelzoo.planning.memory import DENSE, Layout, count_memory
from modelzoo.planning.plan import make_plan
from modelzoo.planning.plan_text import describe_plan
from modelzoo.train_state import Reduction
from tests.memory import PeakMemory
from tests.support import TINY, batch, config, make_run, train_step

STEPS, UPDATES = 7, {"update": {"freq": 3, "start": 2}}
BLOCKS = {"block": [4, 4], "storage": "packed"}
RIGL = {"algorithm": "rigl", "sparsity": 0.75, **UPDATES}
RISING = {"sparsity": {"type": "cubic", "init": 0.25, "final": 0.75, "end": 6}, **UPDATES}
RULES = {
    "dense": [],
    "static": {"sparsity": 0.75},
    "rigl": RIGL,
    "rigl, packed": {**RIGL, **BLOCKS},
    "granet": {"algorithm": "granet", **RISING},
    "granet, packed": {"algorithm": "granet", **RISING, **BLOCKS},
    "gmp": {"algorithm": "gmp", **RISING},
    "set": {**RIGL, "algorithm": "set"},
    "mest": {**RIGL, "algorithm": "mest"},
    "chtss": {"algorithm": "chtss", **RISING},
    "sr_ste": {"algorithm": "sr_ste", "nm": [2, 4]},
    "one of two": [{**RIGL, "param_filter": "*attn*weight"}, {"sparsity": 0.5, "param_filter": "*ffn*weight"}],
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("frozen", [{}, {"lora": {"r": 2}}], ids=["whole", "lora"])
def test_a_plans_flops_are_those_that_a_run_counts(rule, frozen):
    if frozen and rule == "sr_ste":
        pytest.skip("sr_ste trains the weights themselves")
    made = {"sparsity": RULES[rule], "loop": {"max_steps": STEPS}, "model": {**TINY, "max_position_embeddings": 12}}
    run, p = make_run(**made, **frozen), make_plan(config(**made, **frozen))
    for step in range(STEPS):
        train_step(run, batch(step), 1)
    tokens = STEPS * 4 * 12
    assert (p.tokens, run.tokens) == (tokens, tokens)
    assert (round(tokens * p.mean), tokens * p.dense.total) == (run.ledger.sparse, run.ledger.dense)


WIDE = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_heads": 2, "filter_size": 128, "vocab_size": 64,
    "max_position_embeddings": 64, "dropout_rate": 0.0, "attention_dropout_rate": 0.0,
}  # fmt: skip


@pytest.mark.parametrize("parts,slices", [(1, None), (2, None), (2, 2), (4, 2), (4, 4)])
def test_a_plans_memory_of_packed_dense_gradients_is_what_an_update_step_holds(parts, slices):
    """Beyond the most of other steps: nothing where activations make room, else once, and for each sum that waits."""
    made = {"model": WIDE, "sparsity": {**RIGL, "block": [16, 16], "storage": "packed", "update": {"freq": 2}}}
    run = make_run(**made)
    run.reduction = Reduction(slices, None if slices is None else 1)
    peaks = []
    for step in range(4):
        rows = batch(step, 8, 64, 64)
        with PeakMemory() as measured:
            train_step(run, rows, parts)
        peaks.append(measured.peak)
    whole = config(**made, loop={"max_steps": 4, "grad_accum_steps": parts})
    loader = whole.trainer.fit.train_dataloader.model_copy(update={"batch_size": 8})
    fit = whole.trainer.fit.model_copy(update={"train_dataloader": loader})
    whole = whole.model_copy(update={"trainer": whole.trainer.model_copy(update={"fit": fit})})
    planned = count_memory(whole, 64, Layout("CPU", 1, slices))[DENSE]
    asked = 4 * sum(p.shape.numel() for p in run.sparsity.parameters)
    assert planned == asked * ({None: 0, 2: 1, 4: 2}[slices] + (parts > (slices or 1)))
    assert peaks[3] - peaks[2] == pytest.approx(planned, abs=0.01 * asked)


@pytest.mark.parametrize("rule,room", [("rigl", 0), ("sr_ste", None), ("set", None), ("static", None)])
def test_what_the_total_holds_is_what_is_named(rule, room):
    made = config(sparsity=RULES[rule])
    found, text = count_memory(made, 0, Layout("CPU"), rows=0), describe_plan(made)
    assert (found[DENSE] > 0) == (room is not None) == ("of dense gradients" in text)
    if room is not None:  # without activations and work all of them count
        run = make_run(sparsity=RULES[rule])
        assert found[DENSE] == 4 * sum(p.shape.numel() for p in run.sparsity.parameters)
