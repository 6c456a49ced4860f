"""In the CS-2 environment: cstorch's own storage reads what we write, and we read what it writes, bit by bit."""

import pytest

cstorch = pytest.importorskip("cerebras.pytorch", reason="needs the CS-2 environment (make env-csx)")

import torch  # noqa: E402

from modelzoo.interop.mdl.file import _flat, read_mdl, write_mdl  # noqa: E402

W = torch.linspace(-3, 3, 5000).reshape(50, 100)


def state() -> dict:
    odd = torch.tensor([float("inf"), -0.0, 1e-45, 3.14])
    return {
        "model": {
            "model.a.weight": W,
            "model.a.weight_mask": W > 0.5,
            "model.b.weight": W.bfloat16(),
            "model.c.weight": W.half(),
            "model.odd": odd,
        },
        "optimizer": {
            "state": {0: {"exp_avg": W * 2, "beta1_power": torch.tensor(0.81)}, 1: {}},
            "param_groups": [{"lr": 0.1, "betas": (0.9, 0.95), "params": [0, 1]}],
        },
        "sparsity": [{}, {"step": torch.tensor(7), "sparsity": {}}],
        "global_step": 7,
        "note": "text, ünïcode",
        "nothing": None,
        "flag": True,
        "empty": {},
    }


def same(a, b) -> None:
    if isinstance(a, dict):
        assert list(a) == list(b)
        for k in a:
            same(a[k], b[k])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b) and type(a) is type(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    elif isinstance(a, torch.Tensor):
        y = b + torch.zeros((), dtype=b.dtype) if b.dtype != torch.bool else b | torch.tensor(False)
        assert a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, y)
    else:
        assert a == b and type(a) is type(b)


def test_cstorch_loads_what_we_write(tmp_path):
    path = str(tmp_path / "ours.mdl")
    write_mdl(path, state())
    same(state(), cstorch.load(path, map_location="cpu"))


def test_we_read_what_cstorch_saves(tmp_path):
    path = str(tmp_path / "theirs.mdl")
    cstorch.save(state(), path)
    expected = dict(_flat(state()))
    found = read_mdl(path, list(state()))
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        same(value, found[key])


def test_tied_weights_and_filled_tensors(tmp_path):
    from cerebras.pytorch.storage.serializers import DeferredFullTensor

    path = str(tmp_path / "theirs.mdl")
    filled = DeferredFullTensor(torch.Size([2, 3]), torch.float32, 0.5)
    cstorch.save({"model": {"a": W, "b": W, "full": filled}, "global_step": 3, "other": [3]}, path)
    found = read_mdl(path, ["model", "global_step"])
    assert torch.equal(found["model.a"], W) and torch.equal(found["model.b"], W)
    assert torch.equal(found["model.full"], torch.full((2, 3), 0.5)) and found["global_step"] == 3


def test_objects_that_cstorch_pickles_are_refused(tmp_path):
    from modelzoo.config.errors import UserError

    path = str(tmp_path / "theirs.mdl")
    cstorch.save({"model": {"a": W}, "extra": {"thing": slice(1, 2)}}, path)
    assert set(read_mdl(path, ["model"])) == {"model.a"}
    with pytest.raises(UserError, match="pickled object"):
        read_mdl(path, ["extra"])


def test_a_run_of_ours_goes_on_in_cstorchs_optimizer(tmp_path):
    """cstorch's AdamW, loaded from our exported state, takes the step that AdamW would (torch's, as reference)."""
    from modelzoo.interop.mdl.state import convert_to_zoo, list_parameter_groups
    from modelzoo.models.shapes import list_parameters
    from modelzoo.optim.adam import AgedAdam
    from modelzoo.training.checkpoints.snapshot import snapshot
    from tests.support import batch, config, make_run, train_step

    run = make_run()
    for step in range(3):
        train_step(run, batch(step), 1)
    files, st = snapshot(run, "data")
    path = str(tmp_path / "ours.mdl")
    write_mdl(path, convert_to_zoo(files, st, run.init))
    loaded = cstorch.load(path, map_location="cpu")

    if cstorch.current_backend(raise_exception=False, raise_warning=False) is None:  # one a process
        cstorch.backend("CPU", artifact_dir=str(tmp_path / "artifacts"))
    names = [n for _, _, group in list_parameter_groups(config().trainer.init.model) for n in group]
    params = {n: torch.nn.Parameter(loaded["model"][n].detach().clone()) for n in names}
    groups = [{"params": [params[n] for n in g]} for _, _, g in list_parameter_groups(run.init.model)]
    theirs = cstorch.optim.AdamW(groups, lr=0.5, betas=(0.5, 0.5))
    theirs.load_state_dict(loaded["optimizer"])
    torch.manual_seed(0)
    ours = dict(run.model.named_parameters())
    for n in names:
        grad = torch.randn_like(ours[n])
        ours[n].grad, params[n].grad = grad, grad.clone()
    theirs.step()
    assert isinstance(run.optimizer, AgedAdam)
    for group in run.optimizer.param_groups:
        group["lr"] = run.lr()
    run.optimizer.step()
    assert set(names) == set(list_parameters(run.init.model))
    for n in names:  # they divide by sqrt(v) + eps before, we after, the correction of bias: eps is 1e-8
        torch.testing.assert_close(params[n].data, ours[n].data, rtol=1e-5, atol=1e-6)


def test_cstorchs_sparsity_takes_our_masks_and_step(tmp_path):
    """A RigL run of ours, written as .mdl, in cstorch: masks equal, its algorithm at our step, nothing missing."""
    from modelzoo.interop.mdl.state import convert_to_zoo
    from modelzoo.models.gpt import GPTModel
    from modelzoo.training.checkpoints.snapshot import snapshot
    from tests.support import batch, make_run, train_step

    rigl = {"algorithm": "rigl", "sparsity": 0.5, "update": {"freq": 2}, "param_filter": ["*linear_layer.weight"]}
    run = make_run(sparsity=rigl)
    for step in range(5):
        train_step(run, batch(step), 1)
    path = str(tmp_path / "ours.mdl")
    write_mdl(path, convert_to_zoo(*snapshot(run, "data"), run.init))
    loaded = cstorch.load(path, map_location="cpu")
    if cstorch.current_backend(raise_exception=False, raise_warning=False) is None:  # one a process
        cstorch.backend("CPU", artifact_dir=str(tmp_path / "artifacts"))
    model, sparsity = GPTModel(run.init.model, seed=1), cstorch.sparse.configure(rigl)
    sparsity.apply(model)
    keys = model.load_state_dict(loaded["model"], strict=False)
    assert not keys.missing_keys
    assert all(k.startswith("model.transformer_decoder.norm.") for k in keys.unexpected_keys)  # the zoo's second name
    sparsity.load_state_dict(loaded["sparsity"])
    assert int(sparsity._groups[0].algorithm.step) == 5
    for p in run.sparsity.parameters:
        assert torch.equal(model.get_submodule(p.name.removesuffix(".weight")).weight_mask.bool(), p.mask), p.name
