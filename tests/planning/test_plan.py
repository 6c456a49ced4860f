"""The plan's numbers against counting by hand, and its text against the files that are there."""

import json

import pytest
import torch

from modelzoo.config.errors import UserError
from modelzoo.config.loading.load import validate
from modelzoo.config.loading.yaml12 import Document
from modelzoo.config.trainer import Config
from modelzoo.kernels.blocks.layout import layout_of
from modelzoo.models.shapes import list_parameters
from modelzoo.planning import plan, plan_text, problems
from modelzoo.planning.stored import group_sizes
from modelzoo.progress import format_size
from modelzoo.sparsity import mup
from tests.support import examples, write_shard

L, D, V, T, BATCH = 2, 8, 11, 5, 4
MATRICES = 12 * L * D**2  # 1,536 weights in 12 matrices of 64 or 256
ATTENTION_AND_HEAD = 12 * L * T * D + 6 * D * V
MODEL = dict(
    hidden_size=D, num_heads=2, num_hidden_layers=L, filter_size=4 * D, vocab_size=V, max_position_embeddings=T
)
TRAIN = {"data_dir": "train", "batch_size": BATCH}


def config(sparsity=None, loop=None, fit=None, model=None, **init) -> Config:
    init |= {"model": {**MODEL, **(model or {})}, "sparsity": sparsity, "loop": loop or {"max_steps": 10}}
    fit = {"train_dataloader": TRAIN, **(fit or {})}
    return validate(Document({"trainer": {"init": init, "fit": fit}}), Config)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_dense():
    p = plan.make_plan(config())
    everything = MATRICES + (V + T) * D + 13 * L * D + 2 * D  # as in GPT-2: tied embedding, biases and norms
    assert (p.total, p.sparse_total, p.live) == (everything, 0, everything)
    assert p.dense == p.start and p.dense.total == p.mean == 6 * MATRICES + ATTENTION_AND_HEAD
    assert (p.steps, p.context, p.tokens) == (10, T, 10 * BATCH * T)


def test_static():
    p = plan.make_plan(config(0.75))
    assert (p.sparse_total, p.total - p.live) == (MATRICES, MATRICES * 3 // 4)
    assert p.start.total == p.mean == 6 * MATRICES / 4 + ATTENTION_AND_HEAD
    assert p.dense.total == 6 * MATRICES + ATTENTION_AND_HEAD


def live(sparsity: float) -> int:
    """Live weights at a level, matrix by matrix: eight of 64 and four of 256."""
    return sum(int(round((1 - sparsity) * n, 9)) for n in [64] * 4 * L + [256] * 2 * L)


def test_rigl_pays_for_its_dense_gradients():
    p = plan.make_plan(config({"algorithm": "rigl", "sparsity": 0.75, "update": {"freq": 3, "stop": 9}}))
    sparse = 6 * MATRICES / 4
    # steps 3 and 6 also compute the weight gradient, 2 FLOPs a weight, of the 3/4 that are off
    by_hand = (8 * sparse + 2 * (sparse + 2 * MATRICES * 3 / 4)) / 10 + ATTENTION_AND_HEAD
    assert p.mean == pytest.approx(by_hand, rel=1e-12)
    listed = plan.make_plan(config({"algorithm": "rigl", "sparsity": 0.75, "update": {"steps": [3, 6, 50]}}))
    assert listed.mean == p.mean
    assert (
        plan.make_plan(config({"algorithm": "set", "sparsity": 0.75, "update": {"freq": 3}})).mean
        == sparse + ATTENTION_AND_HEAD
    )


def test_each_rigl_group_pays_for_its_own_gradients():
    def rigl(**more):
        return {"algorithm": "rigl", "sparsity": 0.75, "update": {"freq": 5}, **more}

    one = plan.make_plan(config(rigl())).mean
    two = plan.make_plan(config([rigl(param_filter="*attn*"), rigl(param_filter="*ffn*linear_layer.weight")])).mean
    assert two == pytest.approx(one, rel=1e-12)
    mixed = [rigl(param_filter="*attn*weight"), {"sparsity": 0.75, "param_filter": "*ffn*weight"}]
    extra = 2 * 2 * (4 * L * D**2) * 3 / 4 / 10  # two updates in ten steps, attention's matrices only
    assert plan.make_plan(config(mixed)).mean == pytest.approx(6 * MATRICES / 4 + ATTENTION_AND_HEAD + extra, rel=1e-12)


def test_gmp_costs_what_its_masks_cost_step_by_step():
    levels = {4: 0.3, 8: 0.6}  # masks after steps 4 and 8 of 10; the first four steps are dense
    p = plan.make_plan(config({"algorithm": "gmp", "sparsity": {"type": "linear", "init": 0, "slope": 0.075},
                          "update": {"freq": 4}}))  # fmt: skip
    by_hand = (4 * MATRICES + 4 * live(levels[4]) + 2 * live(levels[8])) * 6 / 10 + ATTENTION_AND_HEAD
    assert p.mean == pytest.approx(by_hand, rel=1e-12)
    assert p.start.total == p.dense.total


def test_a_long_run_is_sampled_closely_enough():
    steps = 20_000
    cubic = {"type": "cubic", "final": 0.75, "end": steps}
    p = plan.make_plan(config({"algorithm": "gmp", "sparsity": cubic}, {"max_steps": steps}))
    # the mean of 1 - 0.75 (1 - (1 - x)^3) over [0, 1] is 1 - 0.75 * 3/4; rounding down costs under a weight a matrix
    assert p.mean == pytest.approx(6 * MATRICES * (1 - 0.75 * 0.75) + ATTENTION_AND_HEAD, rel=0.01)


def test_sparse_embeddings_count_as_parameters_but_save_no_flops():
    p = plan.make_plan(config({"sparsity": 0.5, "param_filter": "*word_embeddings*"}))
    assert p.sparse_total == V * D and p.live == p.total - V * D // 2
    assert p.start == p.dense and p.mean == p.dense.total


@pytest.mark.parametrize(
    "loop,steps",
    [
        ({"max_steps": 7}, 7),
        ({"num_steps": 7}, 7),
        ({"num_epochs": 2, "steps_per_epoch": 5}, 10),
        ({"num_epochs": 2}, None),
        ({"eval_steps": 3}, None),
    ],
)
def test_steps(loop, steps):
    p = plan.make_plan(config(loop=loop))
    assert (p.steps, p.tokens) == (steps, steps and steps * BATCH * T)


def shards(folder, **manifest):
    folder.mkdir(parents=True)
    write_shard(folder / "output_chunk_0_0.h5", examples(2))
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_steps_and_context_from_the_data(elsewhere):
    shards(elsewhere / "train", n_examples=43, msl=3)
    p = plan.make_plan(config(loop={"num_epochs": 2}))
    assert (p.steps, p.context, p.tokens) == (20, 3, 20 * BATCH * 3)  # 43 examples are ten whole batches
    assert plan.make_plan(config(fit={"train_dataloader": {**TRAIN, "max_sequence_length": 2}})).context == 2
    assert (
        plan.make_plan(config(fit={"train_dataloader": {**TRAIN, "num_samples": 8}}, loop={"num_epochs": 3})).steps == 6
    )


@pytest.mark.parametrize("content", ["{", "[1]", '{"n_examples": "many", "msl": "long"}', "\x00"])
def test_a_damaged_manifest_gives_no_other_figures(elsewhere, content):
    shards(elsewhere / "train")
    (elsewhere / "train" / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"train/manifest\.json: "):
        plan.make_plan(config())


def test_a_folder_that_cannot_be_looked_at_is_not_called_missing(elsewhere):
    (elsewhere / "val").symlink_to("val")  # a loop
    with pytest.raises(OSError) as e:
        plan_text.describe_plan(config(fit={"val_dataloader": [{"data_dir": ["val"], "batch_size": 1}]}))
    assert e.value.filename == "val"


def test_data_that_a_run_would_refuse_is_refused_by_the_plan(elsewhere):
    def find(c):
        (line,) = problems.find_problems(c, plan.make_plan(c), on_cpu=True)
        return line

    shards(elsewhere / "train", shards=[{"file": "output_chunk_0_0.h5"}, {"file": "b_gone.h5"}])
    assert find(config()).startswith("train/b_gone.h5: missing (manifest.json lists it)")
    shards(elsewhere / "val")
    masked = examples(40)
    masked[:, 1] = 0
    write_shard(elsewhere / "val/output_chunk_0_0.h5", masked)
    line = find(config(fit={"train_dataloader": {**TRAIN, "data_dir": "val"}}))
    assert line.startswith("val/output_chunk_0_0.h5: no place of its 40 examples counts for the loss")


def test_text_says_what_is_there_and_what_is_missing(elsewhere):
    shards(elsewhere / "train", n_examples=1234)
    write_shard(elsewhere / "val.h5", examples(2))
    c = config(fit={"val_dataloader": [{"data_dir": ["val.h5", "gone"], "batch_size": 1}], "ckpt_path": "ckpt/step_1"})
    lines = plan_text.describe_plan(c).splitlines()
    assert "data       train: train  found, 1 shards, 1,234 examples" in lines
    shards(elsewhere / "padded", n_examples=20, msl=8, loss_tokens=40)
    padded = config(fit={"val_dataloader": [{"data_dir": "padded", "batch_size": 1}]})
    assert "padded  found, 1 shards, 20 examples, 25.0% of whose tokens count" in plan_text.describe_plan(padded)
    assert "data       val: val.h5  found" in lines
    assert "data       val: gone  MISSING" in lines
    assert "data       checkpoint: ckpt/step_1  MISSING" in lines


def test_text_names_mixtures_and_every_validation_set_once():
    mixture = [{"data_dir": ["a", "b"], "weight": 1}, {"data_dir": "c", "weight": 2}]
    val = {"data_dir": "v", "batch_size": 1}
    c = validate(Document({"trainer": {
        "init": {"model": MODEL, "loop": {"max_steps": 1}},
        "fit": {"train_dataloader": {"mixture": mixture, "batch_size": 2}, "val_dataloader": val},
        "validate": {"val_dataloader": val}, "validate_all": {"val_dataloaders": [val, {**val, "data_dir": "w"}]},
    }}), Config)  # fmt: skip
    uses = [line.split()[1:3] for line in plan_text.describe_plan(c).splitlines() if line.startswith("data")]
    assert uses == [["train:", "a"], ["train:", "b"], ["train:", "c"], ["val:", "v"], ["val:", "w"]]


def test_text_gives_live_and_total_numbers():
    p, text = plan.make_plan(config(0.75)), plan_text.describe_plan(config(0.75))
    assert f"{p.total:,} in all, {p.live:,} live at the start" in text
    assert f"{MATRICES:,} under masks, {MATRICES // 4:,} of them live" in text
    assert f"{p.dense.total / p.start.total:.3f}x" in text
    assert "counted, not measured" in text
    gmp = {"algorithm": "gmp", "sparsity": {"type": "cubic", "final": 0.75, "end": 9}}
    assert "gmp, random masks, uniform: 0 to 0.75 over 12 weights" in plan_text.describe_plan(config(gmp))
    dense = plan_text.describe_plan(config())
    assert "in all, dense" in dense and "masks" not in dense
    assert "unknown (give loop.max_steps" in plan_text.describe_plan(config(loop={"num_epochs": 1}))
    assert "in 2 micro-batches" in plan_text.describe_plan(config(loop={"max_steps": 1, "grad_accum_steps": 2}))
    fit = {"train_dataloader": {**TRAIN, "micro_batch_size": 1}}
    assert "in 4 micro-batches" in plan_text.describe_plan(config(fit=fit))


def test_memory_of_weights_and_optimizer():
    def memory(**kwargs):
        return plan.make_plan(config(**kwargs)).bytes

    total = plan.make_plan(config()).total
    assert memory()["weights"] == memory()["gradients"] == 4 * total
    assert memory()["optimizer"] == memory(optimizer={"AdamW": {}})["optimizer"] == 8 * total
    assert memory(optimizer={"SGD": {"momentum": 0.9}})["optimizer"] == 4 * total
    assert memory(optimizer={"SGD": {}})["optimizer"] == 0
    assert memory()["masks"] == 0 < memory(sparsity=0.5)["masks"]
    key = "activations (estimate)"
    assert memory()[key] == 2 * memory(loop={"max_steps": 1, "grad_accum_steps": 2})[key]
    micro = {"train_dataloader": {**TRAIN, "micro_batch_size": 1}}
    assert memory()[key] == BATCH * memory(fit=micro)[key]


def test_memory_of_packed_blocks():
    """Dead blocks take no weight, gradient or moment; for masks there are a layout's indices."""

    def memory(**fields):
        return plan.make_plan(config({"sparsity": 0.75, "block": [4, 4], **fields})).bytes

    whole, packed = memory(storage="masked"), memory(storage="packed")
    dead = MATRICES - MATRICES // 4
    made = config({"sparsity": 0.75, "block": [4, 4]}).trainer.init
    (sizes,) = (named for _, named in group_sizes(made))
    layouts = [layout_of(torch.arange(r * c // 16).view(r // 4, c // 4) % 4 == 0, (4, 4)) for r, c in sizes.values()]
    indices = sum(part.numel() * part.element_size() for layout in layouts for part in layout.parts)
    assert whole == memory(storage="auto") and whole["masks"] == 2 * MATRICES and packed["masks"] == indices
    for part, each in (("weights", 4), ("gradients", 4), ("optimizer", 8)):
        assert whole[part] - packed[part] == each * dead
    orders = 16 * sum(inputs for _, inputs in sizes.values())  # int64, there and back
    permuted = memory(storage="packed", permute_inputs="start", init_method="topk")
    assert permuted == {**packed, "masks": indices + orders}
    rigl = {"algorithm": "rigl", "update": {"freq": 2}}
    explored = sum(-(-r * c // 16 // 8) for r, c in sizes.values())  # a bit a block
    assert memory(storage="packed", **rigl)["masks"] == 4 * MATRICES // 4 + indices + explored
    assert memory(storage="masked", **rigl)["masks"] == (2 + 4) * MATRICES + explored


def test_text_says_where_sparsity_is_real(act_as):
    def text(*sections):
        return plan_text.describe_plan(config(list(sections)))

    blocks = {"sparsity": 0.75, "block": [4, 4]}
    assert "static, random masks, uniform, block: [4, 4]: 0.75 over 12 weights" in text(blocks)
    whole = "counted, not measured: off the CS-2, these masks save no time"
    assert (
        whole in text({"sparsity": 0.75})
        and whole in text({"nm": [2, 4]})
        and whole in text({**blocks, "storage": "masked"})
    )
    alone = "storage: packed computes the live ones alone; -m bench"
    act_as("amx")  # whose dense products outrun what picks single weights, in 16 bits
    assert alone not in text({"sparsity": 0.75})
    act_as("avx2")
    assert alone in text({"sparsity": 0.75}) and alone not in text({"sparsity": 0.5})
    assert alone not in text({"sparsity": 0.75, "block": [4, 4], "storage": "masked"})
    compressed = "12 weights are 2:4: NVIDIA GPUs"
    assert compressed in text({"nm": [2, 4], "storage": "compressed"})
    assert not any(compressed in text(other) for other in ({"nm": [2, 4]}, {"nm": [2, 4], "storage": "masked"}))
    auto = text(blocks)
    edges = 2 * (4 * (3 + 3) + (9 + 3) + (3 + 9))  # of rows and columns of blocks, each with one more than there are
    saved = (4 + 4 + 8) * (MATRICES - MATRICES // 4) + 2 * MATRICES - 4 * (4 * MATRICES // 4 // 16 + edges)
    assert "12 weights are stored and computed as live blocks where that is faster" in auto
    assert f"then {format_size(saved)} less memory than below" in auto and "-m bench" in auto
    rigl = {"algorithm": "rigl", "update": {"freq": 2}}
    assert (
        f"RigL's update steps have {format_size(4 * MATRICES)} of dense gradients" in text({**blocks, **rigl})
        and "RigL's" not in auto
    )
    both = text({**blocks, "storage": "packed", "param_filter": "*proj_q*weight"}, {"sparsity": 0.5})
    assert "2 weights are stored and computed as live blocks, 10 whole under masks" in both
    assert "less memory" not in both


def test_text_says_what_a_base_density_multiplies():
    """Four times as sparse as the base: initial weights twice as wide, and four times the rate (SuPar, table 1)."""

    def line(**group):
        found = [
            x for x in plan_text.describe_plan(config({"sparsity": 0.75, **group})).splitlines() if "mup_base" in x
        ]
        assert len(found) == ("mup_base_density" in group)
        return found[0].strip() if found else None

    factors = "initial standard deviations x {}, learning rates x {}"
    assert line() is None
    assert line(mup_base_density=1.0) == "mup_base_density 1: " + factors.format(2, 4)
    assert line(mup_base_density=0.25) == "mup_base_density 0.25: " + factors.format(1, 1)
    ratios = mup.density_ratios(
        list_parameters(config({"sparsity": 0.75}).trainer.init.model),
        config({"sparsity": 0.75, "distribution": "erk", "mup_base_density": 0.5}).trainer.init.sparsity,
    ).values()
    ends = [[f"{m**power:.3g}" for m in (max(ratios), min(ratios))] for power in (-0.5, -1)]
    assert ends[0][0] != ends[0][1]
    erk = line(distribution="erk", mup_base_density=0.5)
    assert erk == "mup_base_density 0.5: " + factors.format(*(" to ".join(e) for e in ends))


# --- check: what a run would trip over


def test_check_refuses_blocks_that_do_not_divide():
    assert "sparsity.block: 7 does not divide" in refused({"sparsity": 0.5, "block": [7, 4]})
    assert "sparsity.shared_inputs: 3 does not divide" in refused({"sparsity": 0.5, "shared_inputs": 3})


def refused(sparsity, steps=100) -> str:
    with pytest.raises(UserError) as e:
        plan.check_sparsity(config(sparsity).trainer.init, steps)
    assert "\n" not in str(e.value)
    return str(e.value)


def test_check_names_the_step_at_which_a_layer_runs_empty():
    gmp = {"algorithm": "gmp", "sparsity": {"type": "linear", "init": 0.9, "slope": 0.001}, "update": {"freq": 10}}
    message = refused(gmp, 99)
    # of 64 weights less than one is left above 63/64 = 0.984
    assert "sparsity 0.99 at step 90 leaves no live weight in model.transformer_decoder.layers.0" in message
    plan.check_sparsity(config(gmp).trainer.init, 89)


def test_check_counts_exactly():
    assert "leaves no live weight" in refused(0.985)
    plan.check_sparsity(config(0.984375).trainer.init, 100)  # 63/64: one weight of each small matrix stays
    assert "(8, 8)" in refused(0.985)


def test_check_looks_at_erk_and_balanced_groups_as_they_count():
    # erk leaves small matrices more than their share, so the same level passes
    plan.check_sparsity(config({"sparsity": 0.985, "distribution": "erk"}).trainer.init, 100)
    # two of 64 weights stay at 0.96, which four groups cannot share
    plan.check_sparsity(config({"algorithm": "rigl", "sparsity": 0.96}).trainer.init, 100)
    assert "leaves no live" in refused({"algorithm": "rigl", "sparsity": 0.96, "balance_in_groups": 4})


def test_check_refuses_schedules_and_filters_before_anything_runs():
    assert "reaches 1 at step 50" in refused(
        {"algorithm": "gmp", "sparsity": {"type": "linear", "init": 0.5, "slope": 0.01}, "update": {"freq": 50}}
    )
    assert "names look like" in refused({"sparsity": 0.5, "param_filter": "*nothing*"})


def test_from_zeros_takes_its_level_from_the_weights():
    c = config({"sparsity": 0.99, "init_method": "from_zeros"})
    plan.check_sparsity(c.trainer.init, 10)
    assert "from_zeros masks, uniform: from the weights, counted here as 0.99 over" in plan_text.describe_plan(c)
