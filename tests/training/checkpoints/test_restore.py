"""What a checkpoint holds of a run comes back bit by bit; what does not fit is refused by name, with the way out."""

import pytest
import torch

from modelzoo.config.errors import UserError
from modelzoo.config.trainer import ALL_STATES
from modelzoo.names import name_mask
from modelzoo.training.checkpoints import checkpoint, saving
from modelzoo.training.checkpoints.restore import restore
from modelzoo.training.checkpoints.snapshot import snapshot
from tests.support import TINY, batch, make_run, train_step

UPDATE = {"freq": 4, "stop": 15}
SPARSITY = {
    "dense": [],
    "static": {"sparsity": 0.75},
    "gmp": {"algorithm": "gmp", "sparsity": {"type": "cubic", "final": 0.8, "end": 14}, "update": UPDATE},
    "set": {"algorithm": "set", "sparsity": [0.7, 0.8], "update": UPDATE},
    "rigl": {"algorithm": "rigl", "sparsity": 0.75, "update": UPDATE},
}
OPTIMIZERS = {
    "AdamW": {"AdamW": {"weight_decay": 0.1, "lr": 0.01}},
    "AdamW without correction": {"AdamW": {"weight_decay": 0.1, "lr": 0.01, "correct_bias": False}},
    "Adam": {"Adam": {"lr": 0.01}},
    "SGD": {"SGD": {"momentum": 0.9, "lr": 0.05}},
    "SGD without momentum": {"SGD": {"lr": 0.05}},
}


def tensors(run) -> dict[str, torch.Tensor]:
    return {f"{stem}/{n}": x.clone() for stem, part in snapshot(run, "f")[0].items() for n, x in part.items()}


def assert_same(a, b) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]), name


def trained(steps=6, **sections):
    run = make_run(**sections)
    for step in range(steps):
        train_step(run, batch(step), 1)
    return run


def save(run, root, fingerprint="f") -> str:
    return saving.save(str(root), run.step, *snapshot(run, fingerprint), None)


def read_back(run, path, fingerprint="f", states=ALL_STATES, strict=True) -> None:
    restore(run, path, *checkpoint.load(path), fingerprint, states, strict)


@pytest.mark.parametrize("kind", SPARSITY)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_restored_run_goes_on_exactly(tmp_path, kind, optimizer):
    """Through a file, at the steps before, on and after mask updates, with dropout."""
    sections = {
        "sparsity": SPARSITY[kind], "optimizer": OPTIMIZERS[optimizer], "model": {**TINY, "dropout_rate": 0.1},
    }  # fmt: skip
    run, losses, paths = make_run(**sections), [], {}
    for step in range(10):
        if step in (0, 3, 4, 5, 8):
            paths[step] = save(run, tmp_path)
        losses.append(train_step(run, batch(step), 2))
    for start, path in paths.items():
        again = make_run(**sections, seed=7)
        with torch.no_grad():
            for p in again.model.parameters():
                p.add_(1.0)  # whatever was there before is gone
        read_back(again, path)
        assert (again.step, again.tokens) == (start, start * 48)
        assert [train_step(again, batch(step), 2) for step in range(start, 10)] == losses[start:]
        assert_same(tensors(run), tensors(again))


def test_skipped_steps_and_the_loss_scale_come_back(tmp_path):
    run = trained(3)
    run.unavoidable = 1
    run.skipped, run.loss_scale.dynamic, run.loss_scale.scale, run.loss_scale.good_steps = 2, True, 256.0, 17
    again = make_run()
    again.loss_scale.dynamic = True
    read_back(again, save(run, tmp_path))
    assert (again.step, again.skipped, again.unavoidable, again.optimizer_step) == (3, 2, 1, 1)
    assert (again.loss_scale.scale, again.loss_scale.good_steps) == (256.0, 17)


def test_finite_is_said(tmp_path):
    run = trained(1)
    assert snapshot(run, "f")[1]["finite"] is True
    with torch.no_grad():
        next(run.model.parameters())[0, 0] = float("inf")
    assert snapshot(run, "f")[1]["finite"] is False


def test_tied_weights_are_written_once(tmp_path):
    names = snapshot(trained(1), "f")[0]["model"].keys()
    assert "model.embedding_layer.word_embeddings.weight" in names and "model.lm_head.weight" not in names


# --- refusals ---------------------------------------------------------------------------------------------------------

MODEL = lambda **fields: {"model": {**TINY, **fields}}
WEIGHTS_ONLY = "--load_checkpoint_states model"
OTHER = {  # the saved run, the run that loads, and what it says
    "another width": ({}, MODEL(filter_size=48), r"ffn\.ffn\.0.* is \[32, 16\], .* has \[48, 16\]"),
    "another depth": (
        {}, MODEL(num_hidden_layers=3), r"lacks model\.transformer_decoder\.layers\.2\..* and 15 more.*--disable_"),
    "fewer layers": (
        {}, MODEL(num_hidden_layers=1), r"has model\.transformer_decoder\.layers\.1\..*the config's model has not"),
    "an untied head": (MODEL(share_embedding_weights=False), {}, r"has model\.lm_head\.weight"),
    "other heads": ({}, MODEL(num_heads=4), r"with model\.num_heads 2, the config says 4.*--disable_strict"),
    "another activation": ({}, MODEL(nonlinearity="relu"), r"model\.nonlinearity gelu, the config says relu"),
    "other positions": (
        MODEL(position_embedding_type="alibi"), MODEL(position_embedding_type=None),
        r"model\.position_embedding_type alibi, the config says None"),
    "another optimizer": (
        {}, {"optimizer": OPTIMIZERS["SGD"]}, f"holds AdamW state, the config asks for SGD.*{WEIGHTS_ONLY},sparsity"),
    "dense into sparse": ({}, {"sparsity": 0.5}, f"is dense, the config is sparse.*{WEIGHTS_ONLY}"),
    "sparse into dense": ({"sparsity": 0.5}, {}, rf"is sparse \(12 masks\), the config is dense.*{WEIGHTS_ONLY}"),
    "other layers sparse": (
        {"sparsity": 0.5}, {"sparsity": {"sparsity": 0.5, "param_filter": "*dense*"}},
        r"ffn\.ffn\.0\.linear_layer\.weight is sparse in one of checkpoint and config only"),
    "another static level": (
        {"sparsity": 0.75}, {"sparsity": 0.5},
        rf"proj_q_dense_layer\.weight has 64 live weights, .* asks for 128.*{WEIGHTS_ONLY}"),
}  # fmt: skip


@pytest.mark.parametrize("saved,ours,message", OTHER.values(), ids=OTHER)
def test_a_checkpoint_of_something_else_is_refused_and_changes_nothing(tmp_path, saved, ours, message):
    path = save(trained(2, **saved), tmp_path)
    run = trained(1, **ours)
    before = tensors(run)
    with pytest.raises(UserError, match=message) as e:
        read_back(run, path)
    assert str(e.value).startswith(path) and "\n" not in str(e.value)
    assert_same(before, tensors(run))
    assert run.step == 1


def test_other_data_is_refused(tmp_path):
    path, run = save(trained(2), tmp_path), make_run()
    with pytest.raises(UserError, match=r"trained on other data.*--load_checkpoint_states model,optimizer,sparsity"):
        read_back(run, path, fingerprint="g")
    read_back(run, path, fingerprint=None)  # validation has no place in the data
    assert run.step == 2
    other = make_run()
    read_back(other, path, fingerprint="g", states=("model", "optimizer", "sparsity"))
    assert other.step == 0 and other.optimizer.state[next(other.model.parameters())]["step"].item() == 2


@pytest.mark.parametrize("damage", ["entry", "parameter", "shape", "scalar", "step", "file"])
def test_optimizer_state_that_does_not_fit_is_found_before_anything_changes(tmp_path, damage):
    files, facts = snapshot(trained(2), "f")
    name = "model.ln_f.weight"
    files["optimizer"] = dict(files["optimizer"])
    if damage == "entry":
        del files["optimizer"][f"{name}/exp_avg_sq"]
    elif damage == "shape":
        files["optimizer"][f"{name}/exp_avg"] = torch.zeros(3)
    elif damage == "scalar":
        files["optimizer"][f"{name}/exp_avg"] = torch.tensor(3.0)
    elif damage == "step":
        files["optimizer"][f"{name}/step"] = torch.tensor(float("nan"))
    elif damage == "file":
        del files["optimizer"]
    else:
        files["optimizer"] = {k: v for k, v in files["optimizer"].items() if name not in k}
    path, run = saving.save(str(tmp_path), 2, files, facts, None), make_run()
    before = tensors(run)
    with pytest.raises(UserError, match=r"optimizer state .*--load_checkpoint_states model,sparsity"):
        read_back(run, path)
    assert_same(before, tensors(run))


@pytest.mark.parametrize("change", [lambda x: x.T.contiguous(), lambda x: x[:1], lambda x: x.float()])
def test_a_mask_of_another_form_is_found_before_anything_changes(tmp_path, change):
    files, facts = snapshot(trained(2, sparsity=0.5), "f")
    name = name_mask("model.transformer_decoder.layers.0.ffn.ffn.0.linear_layer.weight")
    files["model"] = {**files["model"], name: change(files["model"][name])}
    path, run = saving.save(str(tmp_path), 2, files, facts, None), make_run(sparsity=0.5)
    before = tensors(run)
    with pytest.raises(UserError, match=r"the mask of \S+ffn\S+ is \w+ \[\d+, \d+\], not bool \[32, 16\]; "):
        read_back(run, path)
    assert_same(before, tensors(run))


@pytest.mark.parametrize("field,value", [
    ("dropout_rate", 0.3), ("attention_dropout_rate", 0.2), ("loss_scaling", "batch_size"), ("initializer_range", 0.1),
    ("initializer", {"name": "normal"}), ("name", "gpt2"),
])  # fmt: skip
def test_what_acts_on_training_alone_may_change(tmp_path, field, value):
    run = make_run(model={**TINY, field: value})
    read_back(run, save(trained(2), tmp_path))
    assert run.step == 2


# --- parts ------------------------------------------------------------------------------------------------------------


def dead_is_zero(run) -> None:
    for p in run.sparsity.parameters:
        for x in (p.weight.detach(), *run.optimizer.state[p.weight].values()):
            assert x is None or x.shape != p.mask.shape or not x[~p.mask].any(), p.name


def test_weights_alone_start_a_sparse_run_that_keeps_the_largest(tmp_path):
    """topk chooses among the checkpoint's weights, not among the fresh draw that they replace."""
    source = trained(4)
    weights = {n: p.detach().clone() for n, p in source.model.named_parameters()}
    run = make_run(sparsity={"sparsity": 0.75, "init_method": "topk"})
    read_back(run, save(source, tmp_path), states=("model",))
    for p in run.sparsity.parameters:
        w = weights[p.name]
        assert p.live == w.numel() // 4 and torch.equal(p.weight.detach(), torch.where(p.mask, w, 0.0))
        assert w[p.mask].abs().min() >= w[~p.mask].abs().max()
    assert run.step == 0
    train_step(run, batch(0), 1)
    dead_is_zero(run)


def test_from_zeros_reads_the_checkpoints_zeros(tmp_path):
    source = trained(2, sparsity=0.75)
    run = make_run(sparsity={"sparsity": 0.75, "init_method": "from_zeros"})
    read_back(run, save(source, tmp_path), states=("model",))
    for p, q in zip(run.sparsity.parameters, source.sparsity.parameters, strict=True):
        assert torch.equal(p.mask, p.weight.detach() != 0) and not (p.mask & ~q.mask).any()


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD"])
def test_moments_of_a_denser_run_are_masked(tmp_path, optimizer):
    run = make_run(sparsity=0.75, optimizer=OPTIMIZERS[optimizer])
    path = save(trained(3, optimizer=OPTIMIZERS[optimizer]), tmp_path)
    read_back(run, path, states=("model", "optimizer", "global_step", "dataloader"))
    assert run.step == 3
    for step in range(3, 6):
        dead_is_zero(run)
        train_step(run, batch(step), 1)
    dead_is_zero(run)


def test_lifting_the_masks(tmp_path):
    """A sparse run's weights as a dense model: the next stage of sparse pre-training, dense fine-tuning."""
    source, run = trained(3, sparsity=0.75), make_run()
    read_back(run, save(source, tmp_path), states=("model",))
    for (n, p), (_, q) in zip(run.model.named_parameters(), source.model.named_parameters(), strict=True):
        assert torch.equal(p, q), n
    train_step(run, batch(0), 1)
    weight = dict(run.model.named_parameters())[source.sparsity.parameters[0].name]
    assert (weight != 0).float().mean() > 0.95


def test_without_model_the_weights_stay(tmp_path):
    run = make_run(seed=8)
    weights = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    read_back(run, save(trained(3), tmp_path), states=("optimizer",))
    for n, p in run.model.named_parameters():
        assert torch.equal(p, weights[n])
    assert run.optimizer.state[next(run.model.parameters())]["step"].item() == 3


def test_not_strict_takes_what_fits(tmp_path):
    source = trained(3)
    run = make_run(model={**TINY, "num_hidden_layers": 3, "nonlinearity": "relu"})
    fresh = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    read_back(run, save(source, tmp_path), strict=False)
    theirs = dict(source.model.named_parameters())
    for n, p in run.model.named_parameters():
        assert torch.equal(p, theirs[n] if n in theirs else fresh[n]), n
        assert run.optimizer.state[p]["step"].item() == (3 if n in theirs else 0)
    train_step(run, batch(3), 1)
    with pytest.raises(UserError, match="this is a checkpoint of another model"):  # a shape never fits
        read_back(make_run(model={**TINY, "filter_size": 48}), save(source, tmp_path), strict=False)


def test_a_static_run_may_go_on_as_rigl(tmp_path):
    run = make_run(sparsity=SPARSITY["rigl"])
    source = trained(2, sparsity=SPARSITY["static"])
    read_back(run, save(source, tmp_path))
    for p, q in zip(run.sparsity.parameters, source.sparsity.parameters, strict=True):
        assert torch.equal(p.mask, q.mask)
        assert not run.optimizer.state[p.weight]["born"].any()
    assert [train_step(run, batch(s), 1).churn > 0 for s in range(2, 5)] == [False, True, False]
    dead_is_zero(run)
