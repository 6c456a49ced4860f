"""Runs with soft prompts and LoRA: what trains, what stays bit by bit, what is learned, saved, refused and resumed."""

import copy

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from modelzoo.config.errors import UserError
from modelzoo.config.trainer import ALL_STATES
from modelzoo.names import SOFT_PROMPT
from modelzoo.planning import plan, plan_text
from modelzoo.training.checkpoints import checkpoint, saving
from modelzoo.training.checkpoints.restore import restore
from modelzoo.training.checkpoints.snapshot import snapshot
from tests.support import TINY, batch, config, make_run, train_step

STATIC = {"algorithm": "static", "sparsity": 0.6}
RIGL = {"algorithm": "rigl", "sparsity": 0.6, "update": {"freq": 1}}
PACKED = {"sparsity": 0.5, "block": [4, 8], "storage": "packed"}  # where it may: LoRA's weights stay whole
ADAMW = {"AdamW": {"betas": [0.9, 0.95], "weight_decay": 0.1, "lr": 3e-2}}
PROMPT, LORA = {"tokens": 3}, {"r": 4, "target_modules": "*"}
ALONE = {
    "prompt": ({"soft_prompt": PROMPT}, lambda n: n == SOFT_PROMPT),
    "lora": ({"lora": LORA}, lambda n: ".lora_" in n),
    "both": ({"soft_prompt": PROMPT, "lora": LORA}, lambda n: n == SOFT_PROMPT or ".lora_" in n),
}


def prompted(step=0, **kwargs):
    b = batch(step, **kwargs)
    b["input_ids"][:, 4:7] = torch.arange(37, 40)
    return b


def values(run):
    return {n: p.detach().clone() for n, p in run.model.named_parameters()}


def equal(a, b):
    assert a.keys() == b.keys()
    for name, x in a.items():
        assert torch.equal(x, b[name]), name


def files_of(run):
    files, facts = snapshot(run, "data")
    return copy.deepcopy(files), facts


@pytest.mark.parametrize("sparsity", [(), STATIC, RIGL, PACKED], ids=["dense", "static", "rigl", "packed"])
@pytest.mark.parametrize("init,ours", ALONE.values(), ids=ALONE)
def test_alone_only_the_new_parameters_change(init, ours, sparsity):
    run = make_run(**init, sparsity=sparsity, optimizer=ADAMW)
    before, masks = values(run), copy.deepcopy(run.sparsity.state_dict())
    for i in range(3):
        train_step(run, (prompted if "soft_prompt" in init else batch)(i), 2)
    after = values(run)
    assert {n for n in before if not torch.equal(before[n], after[n])} == {n for n in before if ours(n)}
    equal(masks, run.sparsity.state_dict())
    held = {n for n, p in run.model.named_parameters() if p in run.optimizer.state}
    assert held == {n for n in before if ours(n)}


def test_a_prompt_does_not_decay_and_rows_that_no_id_selects_stay():
    run = make_run(soft_prompt={"tokens": 5}, optimizer=ADAMW)
    before = values(run)[SOFT_PROMPT]
    train_step(run, prompted(), 1)
    after = values(run)[SOFT_PROMPT]
    assert torch.equal(before[3:], after[3:]) and (before[:3] != after[:3]).any(1).all()


def test_with_the_whole_model_everything_changes_and_masks_hold():
    run = make_run(soft_prompt={**PROMPT, "train": "all"}, sparsity=STATIC, optimizer=ADAMW)
    before = values(run)
    for i in range(3):
        train_step(run, prompted(i), 2)
    after = values(run)
    assert not any(torch.equal(before[n], after[n]) for n in before)
    assert all(not after[p.name][~p.mask].any() for p in run.sparsity.parameters)


@pytest.mark.parametrize(
    "init,steps",
    [
        ({"soft_prompt": {"tokens": 8}, "optimizer": {"AdamW": {"lr": 0.3}}}, 80),
        ({"soft_prompt": {"tokens": 8, "train": "all", "init": "vocab_mean"}}, 60),
        ({"lora": {"r": 8, "alpha": 32, "target_modules": "*"}, "optimizer": {"AdamW": {"lr": 0.05}}}, 120),
    ],
    ids=["prompt alone", "prompt and all", "lora"],
)
def test_each_mode_learns(init, steps):
    """A frozen random model, and one target token after the prompt: each mode makes it near certain."""
    run = make_run(model={**TINY, "embedding_initializer": {"name": "normal", "std": 1.0}}, **init)
    b = batch()
    b["input_ids"][:, 4:12] = torch.arange(37, 45) if "soft_prompt" in init else b["input_ids"][:, 4:12]
    b["attention_mask"].zero_()[:, 11] = 1
    b["labels"][:, 11] = 3
    losses = [train_step(run, b, 1).loss for _ in range(steps)]
    assert losses[-1] < losses[0] / 5 and losses[-1] < 0.7


@pytest.mark.parametrize("init", [i for i, _ in ALONE.values()], ids=ALONE)
def test_a_saved_run_goes_on_bit_by_bit(init, tmp_path):
    data = prompted if "soft_prompt" in init else batch
    init = {**init, "sparsity": STATIC, "optimizer": ADAMW}
    whole = make_run(**init)
    for i in range(4):
        train_step(whole, data(i), 1)
    first = make_run(**init)
    for i in range(2):
        train_step(first, data(i), 1)
    path = saving.save(str(tmp_path), first.step, *snapshot(first, "data"), None)
    second = make_run(**{**init, "seed": 8})  # nothing of the fresh draw survives
    second.init = whole.init
    restore(second, path, *checkpoint.load(path), "data")
    for i in range(2, 4):
        train_step(second, data(i), 1)
    equal(values(whole), values(second))
    ours, theirs = files_of(whole)[0], files_of(second)[0]
    equal(ours["optimizer"], theirs["optimizer"])


@pytest.mark.parametrize("how", ["vocab_mean", "sample_vocab"])
def test_a_prompt_begins_from_the_loaded_weights(how):
    base = make_run(seed=3)
    for i in range(3):
        train_step(base, batch(i), 1)
    run = make_run(seed=4, soft_prompt={"tokens": 4, "init": how}, lora={})
    restore(run, "base", *files_of(base), "data", states=("model", "sparsity"))
    words = dict(base.model.named_parameters())["model.embedding_layer.word_embeddings.weight"]
    rows = values(run)[SOFT_PROMPT]
    if how == "vocab_mean":
        assert torch.equal(rows, words.mean(0).expand(4, -1))
    else:
        assert (rows[:, None] == words[None]).all(-1).any(1).all()
    ids = batch()["input_ids"]
    assert torch.equal(run.model.eval().model.hidden(ids), base.model.eval().model.hidden(ids))
    assert run.step == 0


def test_lora_may_come_to_a_prompt_that_is_there():
    first, run = make_run(soft_prompt=PROMPT), make_run(soft_prompt=PROMPT, lora=LORA, seed=9)
    train_step(first, prompted(), 1)
    restore(run, "first", *files_of(first), "data", states=("model",))
    assert torch.equal(values(run)[SOFT_PROMPT], values(first)[SOFT_PROMPT])
    with pytest.raises(UserError, match=r"lacks .*lora_[AB]"):  # of other modules than the config's: not half of it
        part = make_run(lora={**LORA, "target_modules": "*proj_k*"})
        restore(make_run(lora=LORA), "part", *files_of(part), "data", states=("model",))


@pytest.mark.parametrize("init", [i for i, _ in ALONE.values()], ids=ALONE)
def test_in_bfloat16_losses_stay_near(init):
    """The same steps in mixed precision; bfloat16 keeps 8 bits, so losses agree to a percent."""
    data = prompted if "soft_prompt" in init else batch
    runs = [make_run(**init, optimizer=ADAMW, precision={"enabled": on, "emulate": True}) for on in (True, False)]
    for i in range(5):
        half, whole = (train_step(run, data(i), 2).loss for run in runs)
        assert half == pytest.approx(whole, rel=0.01)
    assert all(p.dtype == torch.float32 for p in runs[0].model.parameters())


def test_optimizer_state_of_the_base_may_be_kept():
    base = make_run(optimizer=ADAMW)
    train_step(base, batch(), 1)
    run = make_run(optimizer=ADAMW, soft_prompt={**PROMPT, "train": "all"})
    restore(run, "base", *files_of(base), "data", states=("model", "optimizer", "sparsity"))
    kept = dict(run.model.named_parameters())
    for name, p in base.model.named_parameters():
        equal(base.optimizer.state[p], run.optimizer.state[kept[name]])
    assert not run.optimizer.state[kept[SOFT_PROMPT]]["exp_avg"].any()


def test_what_does_not_go_on_is_said():
    plain, run = make_run(), make_run(soft_prompt=PROMPT)
    with pytest.raises(UserError, match=r"lacks .*soft_prompt, .* --load_checkpoint_states model"):
        restore(run, "base", *files_of(plain), "data", ALL_STATES)
    with pytest.raises(UserError, match=r"has .*soft_prompt; give the soft_prompt and lora sections"):
        restore(plain, "run", *files_of(run), "data", ("model",))
    other = make_run(lora={"alpha": 4})
    with pytest.raises(UserError, match=r"lora.alpha 16.0, the config says 4.0"):
        restore(other, "run", *files_of(make_run(lora={})), "data", ("model",))
    with pytest.raises(UserError, match="soft_prompt is"):
        restore(run, "run", *files_of(make_run(soft_prompt={"tokens": 4})), "data", ("model",))


def test_without_adapters_a_checkpoint_says_nothing_of_them():
    _, facts = files_of(make_run())
    assert not {"soft_prompt", "lora"} & facts.keys()
    _, facts = files_of(make_run(soft_prompt=PROMPT, lora=LORA))
    assert facts["soft_prompt"]["tokens"] == 3 and facts["lora"]["r"] == 4


def flops(init) -> tuple[int, int, float]:
    """Of one step: by torch's counter, by the run's ledger, by the plan."""
    run, b = make_run(**init), prompted() if "soft_prompt" in init else batch()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        train_step(run, b, 1)
    per_token = plan.make_plan(config(**init)).start.total
    return counter.get_total_flops(), run.ledger.sparse, per_token * b["input_ids"].numel()


def test_a_frozen_model_costs_two_passes():
    """Torch's counter, the ledger and the plan agree; the dense model's third pass is all that goes."""
    counted, logged, planned = flops({"soft_prompt": PROMPT})
    assert counted == logged == planned
    weights = 2 * (4 * 16 * 16 + 2 * 16 * 32) + 16 * 37
    assert flops({})[0] - counted == 2 * weights * 48
    assert flops({"soft_prompt": {**PROMPT, "train": "all"}})[0] == flops({})[0]


def test_loras_matrices_cost_three_passes():
    """The ledger leaves out that the first layer's inputs need no gradient: its queries', keys' and values' do not."""
    counted, logged, planned = flops({"lora": LORA})
    assert logged == planned
    first = 3 * 2 * 48 * (16 * 16 + 4 * 16)  # three projections, W and A: their third product
    assert logged - counted == first


def test_the_plan_says_what_trains():
    made = plan.make_plan(config(soft_prompt=PROMPT, lora=LORA))
    low = 2 * 4 * (4 * (16 + 16) + 2 * (16 + 32))
    assert made.trained == 3 * 16 + low and made.total == plan.make_plan(config()).total + made.trained
    assert made.bytes["gradients"] == 4 * made.trained and made.bytes["optimizer"] == 8 * made.trained
    text = plan_text.describe_plan(config(soft_prompt=PROMPT, lora=LORA))
    assert "soft prompt of 3 vectors (before_target, from random) and LoRA of rank 4 on 12 weights" in text
    assert "frozen" in text and f"{made.trained:,} parameters" in text
    assert "trains " not in plan_text.describe_plan(config())
