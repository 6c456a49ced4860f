"""The plan of several devices: what they send, against what the sums really pack; memory, against what a step takes."""

import math

import pytest
import torch

from modelzoo import cli
from modelzoo.backends import reduction
from modelzoo.backends.local import Local
from modelzoo.config.errors import UserError
from modelzoo.config.trainer import Config
from modelzoo.models.gpt import GPTModel
from modelzoo.models.shapes import list_with_adapters
from modelzoo.planning import devices_text, memory, plan, traffic
from modelzoo.planning.memory import Layout
from modelzoo.planning.stored import count_stored, group_sizes
from modelzoo.sparsity.parameter import PackedParameter
from tests.memory import PeakMemory
from tests.support import TINY, batch, config, make_run, train_step

RIGL = {"algorithm": "rigl", "sparsity": 0.75, "update": {"freq": 3}}
BLOCKS = {"block": [4, 4], "storage": "packed"}
KINDS = {
    "dense": {},
    "static": {"sparsity": 0.75},
    "rigl": {"sparsity": RIGL},
    "gmp": {"sparsity": {"algorithm": "gmp", "sparsity": {"type": "cubic", "final": 0.75, "end": 6}}},
    "packed": {"sparsity": {"sparsity": 0.75, **BLOCKS}},
    "packed_rigl": {"sparsity": {**RIGL, **BLOCKS}},
    "embeddings": {"sparsity": {**RIGL, "param_filter": "*word_embeddings*"}},
    "mixed": {"sparsity": [{**RIGL, "param_filter": "*attn*weight"}, {"sparsity": 0.5, "param_filter": "*ffn*weight"}]},
    "lora": {"lora": {"r": 2}, "sparsity": 0.75},
    "frozen": {"lora": {"r": 2}, "sparsity": RIGL},
}  # fmt: skip
CHANGING = [
    {"sparsity": 0.75}, RIGL, {**RIGL, "algorithm": "mest"}, {"algorithm": "set", "sparsity": 0.75},
    *({"algorithm": a, "sparsity": {"type": "cubic", "final": 0.75, "end": 6}} for a in ("gmp", "granet")),
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_values_sent_are_those_that_are_packed(kind):
    made, run = config(**KINDS[kind]), make_run(**KINDS[kind])
    for step in range(1, 7):
        run.sparsity.watch(step)
        leaves = reduction.list_leaves(run)
        assert step == run.optimizer_step + 1
        places = run.sparsity.live_places(step)
        packed = reduction._pack(places, leaves, [torch.zeros_like(x) for x in leaves])
        assert traffic.count_sent(made.trainer.init, step) == sum(x.numel() for x in packed)
        if step == 1:
            assert traffic.count_masked(made.trainer.init) == sum(x.numel() for x in places.values())
        train_step(run, batch(step))
    dense = traffic.find_dense_step(made.trainer.init, None)
    assert dense == (3 if kind in ("rigl", "packed_rigl", "embeddings", "mixed") else None)


def batched(batch_size: int, **loader) -> Config:
    fit = {"train_dataloader": {"data_dir": "x", "batch_size": batch_size, **loader}}
    return Config.model_validate({"trainer": {"init": {"model": TINY, "loop": {"max_steps": 1}}, "fit": fit}})


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_bytes_of_replicas(devices):
    """By simulation: a ring's rank passes on one of N parts N-1 times, twice; a tree's gives all to log2 N partners."""
    values = 840 * 8
    ring = sum(4 * values // devices for _ in range(2) for _ in range(devices - 1))
    tree = sum(4 * (values + 1) for bit in range(10) if 2**bit < devices)
    assert traffic.count_replica_bytes(values, devices, exact=False) == ring
    assert traffic.count_replica_bytes(values, devices, exact=True) == tree
    assert traffic.count_replica_bytes(values, 1, False) == traffic.count_replica_bytes(values, 1, True) == 0


def step_config(mode: str, item: int, **sizes) -> Config:
    model = {**TINY, "hidden_size": 64, "num_hidden_layers": 4, "num_heads": 2, "filter_size": 256, "vocab_size": 128,
             "max_position_embeddings": 256, "dropout_rate": 0.0, "attention_dropout_rate": 0.0, **sizes}  # fmt: skip
    precision = {"enabled": False} if item == 4 else {"fp16_type": "bfloat16", "emulate": True}
    return config(model=model, precision=precision, backend={"activation_checkpointing": mode})


@pytest.mark.parametrize("sizes", [
    {}, {"num_hidden_layers": 8}, {"vocab_size": 4096}, {"max_position_embeddings": 640}, {"dropout_rate": 0.1},
    {"nonlinearity": "swiglu"},
    {"nonlinearity": "swiglu", "norm_type": "rmsnorm", "position_embedding_type": "rotary", "rotary_dim": 16,
     "num_heads": 4, "attention_module": "multiquery_attention", "extra_attention_params": {"num_kv_groups": 1}},
    {"name": "gptj", "use_untied_layer_norm": True}, {"name": "gptj"},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("item", [4, 2])
@pytest.mark.parametrize("mode", ["none", "attention", "layer"])
def test_the_estimate_is_near_what_a_step_takes(mode, item, sizes):
    """Activations and work, against the most that was live at once. Within a fifth: temporary tensors come and go."""
    made = step_config(mode, item, **sizes)
    init = made.trainer.init
    local = Local(torch.device("cpu"), init.backend, init.precision)
    model, rows = local.place(GPTModel(init.model, 1)), batch(0, 2, init.model.max_position_embeddings, 128)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    there = [*model.parameters(), *(p.grad for p in model.parameters() if p.grad is not None), *rows.values()]
    with PeakMemory(there) as measured:
        with local.autocast():
            loss = model(rows, 1.0)
        loss.backward()
    linear = sum(s.numel for s in list_with_adapters(init).values() if s.kind == "linear")
    estimate = sum(memory.count_activations(init, "CPU", 2, init.model.max_position_embeddings, mode, linear))
    assert estimate == pytest.approx(measured.peak, rel=0.2)


def test_recomputing_takes_less():
    def estimate(mode):
        made = step_config(mode, 4)
        return plan.make_plan(made, "CPU").bytes["activations (estimate)"]

    assert estimate("layer") < estimate("attention") < estimate("none")


@pytest.mark.parametrize("sections", [
    *({"sparsity": {**rule, **stored}} for rule in CHANGING for stored in ({}, {"block": [8, 8]}, BLOCKS)),
    {"sparsity": {"algorithm": "sr_ste", "nm": [2, 4]}},
    {"sparsity": RIGL, "lora": {"r": 2}},
    {"sparsity": RIGL, "optimizer": {"SGD": {"momentum": 0.9, "lr": 0.1}}},
    {"sparsity": RIGL, "optimizer": {"AdamW": {"correct_bias": False, "lr": 0.1}}},
], ids=str)  # fmt: skip
def test_what_masks_take_is_what_a_run_holds(sections):
    """Masks, indices of blocks, ages, weights kept apart and the bits of what was ever live, to the byte."""
    run = make_run(**sections)
    held = [*run.sparsity.explored.bits.values()]
    for p in run.sparsity.parameters:
        held += p.layout.parts if isinstance(p, PackedParameter) else (p.mask, p.keep)
        held += [run.optimizer.state[p.weight].get("born"), getattr(p, "dormant", None)]
    assert count_stored(run.init, ("packed",))[1] == sum(x.nbytes for x in held if x is not None)


def test_a_checkpoint_takes_one_whole_weight():
    """More than a step where that has no rows; a card must hold it even so."""
    made = config(sparsity={"sparsity": 0.75, "block": [8, 8], "storage": "packed"})
    largest = max(math.prod(s) for _, sizes in group_sizes(made.trainer.init) for s in sizes.values())
    found = memory.count_memory(made, 12, Layout("GPU"), rows=0)
    assert (found["work (estimate)"], found["captured graphs"]) == (0, 4 * largest)
    backend = {"cuda_graphs": False}
    found = memory.count_memory(config(sparsity=made.trainer.init.sparsity, backend=backend), 12, Layout("GPU"), rows=0)
    assert (found["work (estimate)"], found["captured graphs"]) == (4 * largest, 0)
    assert memory.count_memory(config(sparsity=0.75), 12, Layout("GPU"), rows=0)["work (estimate)"] == 0


def test_shards_hold_their_share():
    made = config(sparsity=0.75)
    one, of4 = (memory.count_memory(made, 12, Layout("GPU", n, None, sharded=n > 1)) for n in (1, 4))
    for part in ("weights", "gradients", "optimizer", "masks"):
        assert of4[part] == one[part] // 4
    assert of4["sums"] > one["sums"] == 0


def test_exact_sums_wait_in_a_tree():
    """Eight slices of one device: up to three sums of earlier slices wait while the next is computed."""
    made = batched(16)
    gradients = memory.count_memory(made, 12, Layout("CPU"))["gradients"]
    waiting = [memory.count_memory(made, 12, Layout("CPU", 1, slices))["sums"] for slices in (1, 2, 4, 8)]
    assert waiting == [0, gradients, 2 * gradients, 3 * gradients]
    sent = 4 * traffic.count_sent(made.trainer.init, 1)
    assert memory.count_memory(made, 12, Layout("CPU", 8, 8))["sums"] == 3 * sent  # ours, theirs, their sum
    assert memory.count_memory(made, 12, Layout("GPU", 8))["sums"] == sent


@pytest.mark.parametrize("batch_size,micro,layout,rows", [
    (16, None, Layout("CPU"), (16, 16, 1)),
    (16, 4, Layout("CPU"), (16, 4, 4)),
    (16, None, Layout("CPU", 1, 8), (16, 2, 8)),
    (16, None, Layout("CPU", 4, 8), (4, 2, 2)),
    (16, 1, Layout("CPU", 4, 8), (4, 1, 4)),
    (256, 8, Layout("GPU", 8), (32, 8, 4)),
])  # fmt: skip
def test_rows_are_cut_as_the_step_cuts_them(batch_size, micro, layout, rows):
    made = batched(batch_size, micro_batch_size=micro)
    assert memory.share_rows(made, layout) == rows
    parts = batch_size // micro if micro else 1
    groups = layout.slices or layout.devices
    pieces = list(reduction.cut(batch(0, batch_size // groups, 4), -(-parts // groups)))
    assert len(pieces) * groups // layout.devices == rows[2] and len(pieces[0]["input_ids"]) == rows[1]


# --- the text ---------------------------------------------------------------------------------------------------------


def text(made: Config, target: str, devices: int) -> list[str]:
    return devices_text.describe_devices(made, plan.make_plan(made, target), target, devices)


def test_text_has_both_ways_and_what_they_send():
    lines = text(config(sparsity=RIGL), "GPU", 4)
    assert lines[0] == "devices    4 x GPU: 1 of 4 rows each, all at once; sums fast"
    assert lines[1].startswith("replicas   as the config asks: each device needs ") and "sums" in lines[1]
    assert "2 x 3/4 x" in lines[2] and "the live weights alone" in lines[2] and "on RigL's update steps" in lines[2]
    assert lines[3].startswith("shards     each device needs ") and "3/4 x (2 x " in lines[4]
    assert [line.split()[:2] for line in lines[5:8]] == [["cards", "24"], ["40", "GB"], ["80", "GB"]]
    cpu = text(config(), "CPU", 4)
    assert "sums exact, over 4 slices of each batch" in cpu[0] and "a step: 2 x " in cpu[2] and len(cpu) == 5


def test_rows_that_fit_a_card_are_the_most_that_do(monkeypatch):
    made = batched(12)
    layout = Layout("GPU")
    needs = {n: sum(memory.count_memory(made, 12, layout, n, "layer").values()) for n in (1, 2, 3, 4, 6, 12)}
    for n, more in ((1, 2), (3, 4), (12, None)):
        monkeypatch.setattr(devices_text, "USABLE", needs[n] / (24 << 30))
        found = devices_text.fit_card(made, 12, layout, 24)
        assert found["layer"] == n >= found["attention"] >= found["none"]
        assert more is None or needs[more] > needs[n]
    monkeypatch.setattr(devices_text, "USABLE", (needs[1] - 1) / (24 << 30))
    assert set(devices_text.fit_card(made, 12, layout, 24).values()) == {0}
    assert "rows at once: does not fit" in "\n".join(text(made, "GPU", 1))


@pytest.mark.parametrize("words,line", [
    (["CPU", "--devices", "3"], "batch_size 16 is not divisible by 3 processes; take one of 1, 2, 4, 8, 16 processes"),
    (["CPU", "--devices", "16"], "exact sums of a batch of 16 go over 1, 2, 4, ... 8 processes, not 16"),
    (["CSX", "--devices", "2"], "--devices: the number of CS-2 systems is --num_csx"),
])  # fmt: skip
def test_what_cannot_be_shared_out_is_refused(words, line, capsys):
    assert cli.main([*words, "-p", "configs/quickstart/rigl75.yaml", "-m", "plan"]) == 2
    (error,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert line in error


def test_a_config_without_a_batch_is_refused():
    made = Config.model_validate({"trainer": {"init": {"model": TINY}}})
    with pytest.raises(UserError, match=r"has no trainer\.fit"):
        text(made, "CPU", 2)


def test_the_plan_agrees_with_the_run_on_how_it_sums():
    for kind in ("CPU", "GPU"):
        for asked in (None, "exact", "fast"):
            for devices in (1, 2, 4):
                made = config(backend={"reduction": asked, "num_threads": 1})
                decided = reduction.decide_reduction(made.trainer.init.backend, kind, 4, devices, None)
                assert plan.find_layout(made, kind, devices).slices == decided.slices
    assert math.log2(plan.find_layout(config(), "CPU", 4).slices or 0) == 2


def test_exact_sums_of_shares_are_refused_before_a_run(capsys):
    keys = [f"trainer.init.backend.{k}" for k in ("parallel=shard", "reduction=exact")]
    words = ["CPU", "-p", "configs/quickstart/s75.yaml", "-m", "plan", "--set", keys[0], "--set", keys[1]]
    assert cli.main([*words, "--devices", "2"]) == 2
    assert "exact sums are for parallel: replicate" in capsys.readouterr().err
    cli.main([*words, "--devices", "1"])
    assert "exact sums" not in capsys.readouterr().err
