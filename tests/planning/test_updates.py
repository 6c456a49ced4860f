"""A plan counts a run at its fullest: the lowest sparsity, changes of masks, and what captured graphs keep."""

import json

import pytest

from modelzoo.config.sections.sparsity import SparsityGroup
from modelzoo.kernels.limits import GRAPHS
from modelzoo.planning import memory, updates
from modelzoo.planning.memory import Layout
from modelzoo.planning.stored import count_stored
from modelzoo.sparsity import schedules
from modelzoo.sparsity.parameter import PackedParameter
from tests.memory import PeakMemory
from tests.support import TINY, batch, config, make_run, train_step

STEPS = 8
RISING = {"type": "cubic", "init": 0.25, "final": 0.75, "end": 6}
PACKED = {"block": [4, 4], "storage": "packed"}
FALLING = {"algorithm": "set", "sparsity": [0.75, 0.5, 0.25], "update": {"freq": 2, "start": 1}}


@pytest.mark.parametrize("update", [None, {"freq": 3}, {"freq": 4, "start": 5, "stop": 30}, {"steps": [2, 9, 40]}])
@pytest.mark.parametrize("schedule", [
    0.5, [0.75, 0.5, 0.25], {"type": "linear", "init": 0.9, "slope": -0.01, "final": 0.3}, RISING,
    {"type": "cosine", "init": 0.9, "minimum": 0.2, "half_period": 20}, {"type": "power", "init": 0.9, "beta": 0.97},
], ids=str)  # fmt: skip
def test_the_lowest_sparsity_of_a_run_is_found(schedule, update):
    group = SparsityGroup.model_validate({"algorithm": "set", "sparsity": schedule, "update": update})
    for end in (0, 3, 25, 60):
        assert schedules.lowest(group, end) == min(schedules.held(group, step) for step in range(end + 1))


def test_packed_weights_are_planned_as_they_are_when_most_of_them_live():
    made = {"sparsity": {**FALLING, **PACKED}, "loop": {"max_steps": STEPS}}
    run, weights, masks = make_run(**made), [], []
    for step in range(STEPS):
        train_step(run, batch(step), 1)
        packed = [p for p in run.sparsity.parameters if isinstance(p, PackedParameter)]
        held = [x for p in packed for x in (*p.layout.parts, run.optimizer.state[p.weight].get("born"))]
        weights.append(4 * sum(p.numel() for p in run.model.parameters()))
        masks.append(sum(x.nbytes for x in (*held, *run.sparsity.explored.bits.values()) if x is not None))
    planned = memory.count_memory(config(**made), 12, Layout("CPU"))
    assert (planned["weights"], planned["masks"]) == (max(weights), max(masks))
    assert planned["gradients"] == max(weights) > weights[0]
    assert count_stored(run.init, ("packed",)) != count_stored(run.init, ("packed",), STEPS)


WIDE = {**TINY, "hidden_size": 64, "num_hidden_layers": 1, "num_heads": 2, "filter_size": 256, "dropout_rate": 0.0}
WHOLE = ({}, {"block": [4, 4]}, {"storage": "packed"}, PACKED)
RULES = [
    *(({"algorithm": a, "sparsity": 0.5}, forms) for a, forms in (("set", WHOLE), ("mest", WHOLE), ("chts", WHOLE))),
    *(({"algorithm": a, "sparsity": RISING}, (WHOLE[0], WHOLE[3])) for a in ("gmp", "granet", "chtss")),
    ({"algorithm": "gmp", "sparsity": RISING}, ({**PACKED, "permute_inputs": "updates"},)),
    ({"algorithm": "rigl", "sparsity": 0.5}, (*WHOLE, {"shared_inputs": 4, "storage": "packed"})),
]


@pytest.mark.parametrize("rule,form", [(rule, form) for rule, forms in RULES for form in forms], ids=str)
def test_a_change_of_masks_takes_no_more_than_is_planned_and_over_half_of_it(rule, form):
    """What a selection takes inside of torch is not seen here, nor the least of what an allocator hands out."""
    run = make_run(model=WIDE, sparsity={**rule, **form, "update": {"freq": 2}, "param_filter": "*ffn*weight"})
    change, found = run.sparsity.update, []

    def measure(step, state):
        there = [x for p in run.model.parameters() for x in (p, p.grad) if x is not None]
        there += [x for entries in run.optimizer.state.values() for x in entries.values() if hasattr(x, "nbytes")]
        for p in run.sparsity.parameters:
            there += p.layout.parts if isinstance(p, PackedParameter) else (p.mask, p.keep)
            there += [p.dense_grad] if p.dense_grad is not None else []
        with PeakMemory(there) as measured:
            churn = change(step, state)
        found.extend([measured.peak] if run.sparsity.is_update(step) else [])
        return churn

    run.sparsity.update = measure
    for step in range(4):
        train_step(run, batch(step), 1)
    planned = updates.count_update(run.init, "CPU", 4)
    assert len(found) == 2 and 0.5 * planned < max(found) <= planned


def test_a_change_of_masks_counts_where_activations_make_no_room_for_it():
    made = config(model=WIDE, sparsity={"algorithm": "chts", "sparsity": 0.5}, loop={"max_steps": STEPS})
    takes = updates.count_update(made.trainer.init, "CPU", STEPS)
    for rows in (0, 1, 10**4):
        found = memory.count_memory(made, 12, Layout("CPU"), rows=rows)
        room = found["activations (estimate)"] + found["work (estimate)"]
        assert found["mask updates"] == max(takes - room, 0)
    assert memory.count_memory(config(sparsity=0.5), 12, Layout("CPU"), rows=0)["mask updates"] == 0


LONG = {**TINY, "hidden_size": 1024, "filter_size": 2**20}  # layers that a GPU computes for longer than it waits


@pytest.mark.parametrize("where,captured", [
    ({}, True), ({"backend": {"cuda_graphs": False}}, False), ({"sparsity": {"sparsity": 0.75}}, True),
    ({"sparsity": ()}, True), ({"model": LONG}, False),
    ({"backend": {"activation_checkpointing": "layer"}}, False),
], ids=str)  # fmt: skip
def test_graphs_hold_gradients_of_each_width_of_a_batch(tmp_path, where, captured):
    """Where micro-batches are captured, each width has gradients of its own, beyond those of a step."""
    made = config(**{"sparsity": {"sparsity": 0.75, **PACKED}, **where})
    loader = made.trainer.fit.train_dataloader.model_copy(update={"data_dir": (str(tmp_path),)})
    fit = made.trainer.fit.model_copy(update={"train_dataloader": loader})
    made = made.model_copy(update={"trainer": made.trainer.model_copy(update={"fit": fit})})
    kept = memory.count_memory(made, 512, Layout("GPU"))["gradients"]
    extra = []
    for counted in (512, 500):  # of the 512 places of an example
        (tmp_path / "manifest.json").write_text(json.dumps({"n_examples": 10, "loss_tokens": 10 * counted}))
        extra.append(memory.count_memory(made, 512, Layout("GPU"))["captured graphs"])
        assert memory.count_memory(made, 512, Layout("CPU"))["captured graphs"] == 0
    assert extra[1] - extra[0] == captured * kept * (GRAPHS - 1)
    assert (extra[0] > 0) == (captured and "sparsity" not in where)  # a packed weight, whole for a checkpoint
