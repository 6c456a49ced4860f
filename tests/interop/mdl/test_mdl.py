"""Model Zoo's .mdl: leaves survive bit by bit, bad files are refused, and a run goes on through it exactly."""

import json
import os
import pickle
import re
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from modelzoo.cli import main
from modelzoo.config.errors import UserError
from modelzoo.interop.mdl.file import Link, _flat, read_mdl, write_mdl
from modelzoo.interop.mdl.leaves import RTFX
from modelzoo.interop.mdl.seal import SEAL
from modelzoo.interop.mdl.state import OF_THIS_MACHINE, SECTIONS, convert_from_zoo, list_parameter_groups
from modelzoo.models.shapes import list_parameters
from modelzoo.training.checkpoints import checkpoint
from tests.support import config, examples, make_run, tiny, write_shard

CONFIG = """
trainer:
  init:
    seed: 5
    model: {hidden_size: 16, num_hidden_layers: 2, num_heads: 2, filter_size: 32, vocab_size: 37,
            max_position_embeddings: 8, dropout_rate: 0.1, attention_dropout_rate: 0.1}
    optimizer: {OPTIMIZER}
    schedulers: [{LinearLR: {initial_learning_rate: 0.02, end_learning_rate: 0.001, total_iters: 8}}]
    precision: {enabled: false, max_gradient_norm: 1.0}
    SPARSITY
    loop: {max_steps: 8}
    checkpoint: {steps: 4, keep: null}
    logging: {log_steps: 1}
  fit:
    train_dataloader: {data_dir: DATA, batch_size: 4, shuffle: true}
"""
ADAMW = "AdamW: {betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.1}"
FILTER = "param_filter: '*linear_layer.weight'"


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and bits(a) == bits(b)
    return a == b and type(a) is type(b)


def bits(x: torch.Tensor) -> bytes:
    return (x.view(torch.int16) if x.dtype == torch.bfloat16 else x).numpy().tobytes()


DTYPES = [d for d in RTFX if d != torch.bool]
SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)
TENSORS = st.builds(
    lambda shape, dtype, seed: torch.from_numpy(np.random.default_rng(seed).integers(-9, 9, shape)).to(dtype),
    SHAPES,
    st.sampled_from([*DTYPES, torch.bool]),
    st.integers(0, 99),
)
LEAVES = (
    TENSORS | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | st.text("aé.\n") | st.none()
)
KEYS = st.text("abc._", min_size=1, max_size=5).filter(lambda k: "__" not in k)
TREES = st.dictionaries(st.integers(0, 20) | KEYS, LEAVES | st.lists(LEAVES, max_size=3), min_size=1, max_size=4)


@given(TREES)
@settings(max_examples=40, deadline=None)
def test_every_leaf_comes_back_as_it_was(tmp_path_factory, tree):
    state, leaves = {"s": tree}, list(_flat({"s": tree}))
    path, expected = str(tmp_path_factory.mktemp("mdl") / "a.mdl"), dict(leaves)
    assume(len(expected) == len(leaves))  # two paths with one flat key: the format cannot tell them apart
    write_mdl(path, state)
    found = read_mdl(path, ["s"])
    assert found.keys() == expected.keys()
    assert all(same(found[k], expected[k]) for k in expected)


def test_not_a_number_infinity_and_minus_zero_keep_their_bits(tmp_path):
    x = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]).view(2, 2)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        path = str(tmp_path / f"{dtype}.mdl")
        write_mdl(path, {"x": x.to(dtype)})
        assert same(read_mdl(path, ["x"])["x"], x.to(dtype))


def test_the_layout_is_the_zoos(tmp_path):
    path = str(tmp_path / "a.mdl")
    w = torch.ones(3, 4)
    write_mdl(path, {"model": {"a.weight": w, "b.weight": Link("model.a.weight")}, "global_step": 3})
    with h5py.File(path) as file:
        assert set(file) == {"model.a.weight"}  # flat, and a tied weight once
        data = file["model.a.weight"]
        assert data.id.get_create_plist().get_filter(0)[0] == 32004 == hdf5plugin.LZ4.filter_id
        assert data.attrs["dtypes"].tolist() == ["torch.float32"] and data.attrs["__NUMPY__"]
        assert file.attrs["__version__"] == 0.5 and file.attrs["__SUCCESS__"]
        stars, spec = json.loads(file.attrs["__spec__"])
        assert stars == {"model": {"a.weight": "*", "b.weight": "*"}, "global_step": "*"}
        from torch.utils._pytree import tree_flatten, treespec_loads

        assert treespec_loads(spec) == tree_flatten({"model": {"a.weight": w, "b.weight": w}, "global_step": 3})[1]


def test_what_is_behind_the_end_disturbs_no_reader_of_hdf5(tmp_path):
    """Model Zoo 2.10 asks h5py.is_hdf5, then reads all attributes and datasets through an open file."""
    path = whole(tmp_path / "a.mdl")
    assert Path(path).read_bytes()[-83:].startswith(SEAL) and h5py.is_hdf5(path)
    with open(path, "rb") as opened, h5py.File(opened, "r") as file:
        assert dict(file.attrs)["__SUCCESS__"] and torch.equal(
            torch.from_numpy(file["model.w"][...]), torch.arange(4096.0)
        )
    with h5py.File(path, "a") as file:  # whoever edits it takes the sum away
        file["model.w"][0] = 7.0
    assert not Path(path).read_bytes()[-83:].startswith(SEAL) and read_mdl(path, ["model"])["model.w"][0] == 7.0


def test_only_asked_sections_are_read_and_pickles_never(tmp_path):
    path = str(tmp_path / "a.mdl")
    write_mdl(path, {"model": {"w": torch.ones(2)}, "schedulers": 1})

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "trap"),)

    meta = {"schedulers.__metadata__": {"__TYPE__": "ObjectSerializer", "__BYTES__": True}}
    with h5py.File(path, "a") as file:
        file.create_dataset("schedulers", data=h5py.Empty("f")).attrs["__BYTES__"] = np.void(pickle.dumps(Trap()))
        file.attrs["schedulers.__metadata__"] = json.dumps(meta)
    assert set(read_mdl(path, ["model"])) == {"model.w"}
    with pytest.raises(UserError, match=r"a\.mdl: schedulers: is a pickled object"):
        read_mdl(path, ["schedulers"])
    assert not (tmp_path / "trap").exists()


def whole(path) -> str:
    write_mdl(str(path), {"model": {"w": torch.arange(4096.0)}, "global_step": 1})
    return str(path)


def edit(path: str, change) -> None:
    with h5py.File(path, "a") as file:
        change(file)


BROKEN = {
    "missing": (lambda p: os.remove(p), "No such file"),
    "text": (lambda p: Path(p).write_text("hello"), "cannot be read"),
    "cut": (lambda p: os.truncate(p, os.path.getsize(p) // 2), "truncated"),
    "unfinished": (lambda p: edit(p, lambda f: f.attrs.pop("__SUCCESS__")), "not written to its end"),
    "newer": (lambda p: edit(p, lambda f: f.attrs.__setitem__("__version__", 0.9)), "format 0.9"),
    "no data": (lambda p: edit(p, lambda f: f.pop("model.w")), "model.w"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_damaged_files_are_one_clear_line(tmp_path, name):
    path = whole(tmp_path / "a.mdl")
    harm, message = BROKEN[name]
    harm(path)
    with pytest.raises(UserError, match=message) as e:
        read_mdl(path, ["model"])
    assert str(e.value).startswith(path) and "\n" not in str(e.value)


def test_links_out_of_the_file_are_refused(tmp_path):
    whole(tmp_path / "secret.mdl")
    path = whole(tmp_path / "a.mdl")

    def relink(file):
        del file["model.w"]
        file["model.w"] = h5py.ExternalLink(str(tmp_path / "secret.mdl"), "model.w")

    edit(path, relink)
    with pytest.raises(UserError, match="a link elsewhere"):
        read_mdl(path, ["model"])


def test_nothing_is_overwritten(tmp_path):
    path = whole(tmp_path / "a.mdl")
    with pytest.raises(UserError, match="exists"):
        write_mdl(path, {"x": 1})
    with pytest.raises(TypeError):
        write_mdl(str(tmp_path / "b.mdl"), {"x": torch.zeros(2, dtype=torch.complex64)})
    assert os.listdir(tmp_path) == ["a.mdl"]


def test_older_formats(tmp_path):
    """Formats before 0.5, as cerebras_pytorch's own readers expect them: each leaf says its kind."""
    path = str(tmp_path / "old.mdl")
    w = torch.randn(3, 4)
    with h5py.File(path, "w") as file:
        file.attrs["__version__"], file.attrs["__spec__"] = 0.4, pickle.dumps([1]).hex()
        file.create_dataset("model.w", data=w.numpy(), **hdf5plugin.LZ4()).attrs["__H5_TYPE__"] = "TorchTensorH5Type"
        half = file.create_dataset("model.h", data=w.bfloat16().view(torch.int16).numpy())
        half.attrs["__H5_TYPE__"], half.attrs["is_bfloat16"] = "TorchTensorH5Type", True
        zero = file.create_dataset("model.z", data=h5py.Empty("f"))
        zero.attrs.update({"__H5_TYPE__": "FullTensorH5Type", "shape": [2, 3], "fill_value": np.float32(0.5)})
        file.create_dataset("global_step", data=7).attrs["__H5_TYPE__"] = "ScalarH5Type"
        file.create_dataset("model.n", data=h5py.Empty("f")).attrs["__H5_TYPE__"] = "NoneH5Type"
        file.create_dataset("other", data=h5py.Empty("f")).attrs["__H5_TYPE__"] = "ObjectH5Type"
    found = read_mdl(path, ["model", "global_step"])
    assert same(found["model.w"], w) and same(found["model.h"], w.bfloat16())
    assert same(found["model.z"], torch.full((2, 3), 0.5)) and found["global_step"] == 7 and found["model.n"] is None
    with pytest.raises(UserError, match="pickled object"):
        read_mdl(path, ["other"])


def run(*argv) -> int:
    return main([str(a) for a in argv])


def log(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "optimizer,sparsity",
    [
        (ADAMW, ""),
        (ADAMW, f"sparsity: {{sparsity: 0.5, {FILTER}}}"),
        (ADAMW, f"sparsity: {{algorithm: rigl, sparsity: 0.5, update: {{freq: 2}}, {FILTER}}}"),
        (ADAMW, f"sparsity: [{{algorithm: set, sparsity: 0.5, update: {{freq: 3}}, {FILTER}}}, {{sparsity: 0.25}}]"),
        (
            ADAMW,
            f"sparsity: {{algorithm: gmp, sparsity: {{type: cubic, init: 0.25, final: 0.75, end: 6}}, "
            f"update: {{freq: 2}}, block: [4, 4], permute_inputs: updates, {FILTER}}}",
        ),
        ("AdamW: {correct_bias: false}", f"sparsity: {{sparsity: 0.5, {FILTER}}}"),
        ("SGD: {momentum: 0.9}", f"sparsity: {{sparsity: 0.5, {FILTER}}}"),
    ],
    ids=["dense", "static", "rigl", "two groups", "permuted", "uncorrected", "sgd"],
)
def test_a_run_goes_through_a_mdl_and_on_exactly(tmp_path, capsys, optimizer, sparsity):
    write_shard(tmp_path / "data" / "output_chunk_0_0.h5", examples(24))
    text = CONFIG.replace("OPTIMIZER", optimizer).replace("SPARSITY", sparsity).replace("DATA", str(tmp_path / "data"))
    params = tmp_path / "c.yaml"
    params.write_text(text)
    a, b = tmp_path / "a", tmp_path / "b"
    assert run("CPU", "-p", params, "-m", "train", "-o", a) == 0
    assert run("export", a / "checkpoints/step_4", tmp_path / "m.mdl") == 0
    assert run("import", tmp_path / "m.mdl", b, "-p", params) == 0
    ours, theirs = (checkpoint.load(str(p / "checkpoints/step_4")) for p in (a, b))
    assert {k: v for k, v in ours[1].items() if k not in OF_THIS_MACHINE} == theirs[1]
    for stem in ours[0]:
        assert ours[0][stem].keys() == theirs[0][stem].keys()
        assert all(same(x, theirs[0][stem][n]) for n, x in ours[0][stem].items()), stem
    assert run("CPU", "-p", b / "config.yaml", "-m", "train", "-o", b) == 0
    assert log(b) == [line for line in log(a) if line["step"] > 4] and len(log(b)) == 4
    end_a, end_b = (checkpoint.load(str(p / "checkpoints/step_8")) for p in (a, b))
    assert all(same(x, end_b[0][stem][n]) for stem in end_a[0] for n, x in end_a[0][stem].items())


def test_train_and_eval_take_a_mdl_as_it_is(tmp_path, capsys):
    write_shard(tmp_path / "data" / "output_chunk_0_0.h5", examples(24))
    data = str(tmp_path / "data")
    text = CONFIG.replace("OPTIMIZER", ADAMW).replace("SPARSITY", f"sparsity: {{sparsity: 0.5, {FILTER}}}")
    params, a, b = tmp_path / "c.yaml", tmp_path / "a", tmp_path / "b"
    params.write_text(text.replace("DATA", data) + f"    val_dataloader: {{data_dir: {data}, batch_size: 4}}\n")
    assert run("CPU", "-p", params, "-m", "train", "-o", a) == 0
    assert run("export", a / "checkpoints/step_4", tmp_path / "m.mdl") == 0
    assert run("CPU", "-p", params, "-m", "train", "-o", b, "--checkpoint_path", tmp_path / "m.mdl") == 0
    assert log(b) == [line for line in log(a) if line["step"] > 4]
    for path in (a / "checkpoints/step_4", tmp_path / "m.mdl"):
        assert run("CPU", "-p", params, "-m", "eval", "-o", tmp_path / path.stem, "--checkpoint_path", path) == 0
    scores = [json.loads((tmp_path / n / "eval.json").read_text())[0] for n in ("step_4", "m")]
    assert scores[0]["loss"] == scores[1]["loss"] and scores[1]["step"] == 4


def foreign(c, seed: int = 0, step: int = 9) -> dict:
    """What Model Zoo's trainer saves of a GPT of ours: no key of ours, its own numbering, beta powers for steps."""
    torch.manual_seed(seed)
    m = c.trainer.init.model
    weights = {n: torch.randn(s.size) for n, s in list_parameters(m).items()}
    tied = {"model.lm_head.weight": weights["model.embedding_layer.word_embeddings.weight"]}
    twins = {f"model.transformer_decoder.norm.{k}": weights[f"model.ln_f.{k}"] for k in ("weight", "bias")}
    names = [n for _, _, group in list_parameter_groups(m) for n in group]
    state = {
        i: {
            "exp_avg": torch.randn_like(weights[n]),
            "exp_avg_sq": torch.rand_like(weights[n]),
            "beta1_power": torch.tensor(0.9 ** (step + 1)),
            "beta2_power": torch.tensor(0.95 ** (step + 1)),
        }
        for i, n in enumerate(names)
    }
    return {"model": weights | tied | twins, "optimizer": {"state": state}, "global_step": step}, names


def test_a_checkpoint_of_the_zoo_comes_in(tmp_path):
    c = config()
    state, names = foreign(c)
    path = str(tmp_path / "zoo.mdl")
    write_mdl(path, state)
    files, ours = convert_from_zoo(path, read_mdl(path, SECTIONS), c.trainer.init, "data")
    assert files["model"].keys() == list_parameters(c.trainer.init.model).keys()
    assert all(torch.equal(x, state["model"][n]) for n, x in files["model"].items())
    for i, n in enumerate(names):
        assert torch.equal(files["optimizer"][f"{n}/exp_avg"], state["optimizer"]["state"][i]["exp_avg"])
        assert files["optimizer"][f"{n}/step"] == 9.0
    assert ours["global_step"] == 9 and ours["dataset"] == "data"
    from modelzoo.training.checkpoints.restore import restore

    target = make_run()
    restore(target, path, files, ours, "data")
    assert target.step == 9


def test_the_zoos_order_decays_first_and_ends_with_the_layers():
    """Model Zoo's rule in optim_utils: two groups by decay; its model registers ln_f before the decoder's layers."""
    (decay, _, kernels), (plain, _, rest) = list_parameter_groups(tiny())
    assert decay and not plain and len(kernels) + len(rest) == len(list_parameters(tiny()))
    assert kernels[:2] == [
        "model.embedding_layer.word_embeddings.weight",
        "model.embedding_layer.position_embeddings.embed.weight",
    ]
    assert all(n.endswith(".weight") and "norm" not in n and "ln_f" not in n for n in kernels)
    assert rest[:2] == ["model.ln_f.weight", "model.ln_f.bias"] and "layers.0" in rest[2]
    scaled = list_parameter_groups(tiny(mup_base_hidden_size=8, mup_base_filter_size=16))
    assert [(d, s) for d, s, _ in scaled] == [(True, 0.5), (True, 1.0), (False, 1.0)]


def test_pruned_weights_of_release_1_9_are_nan_and_become_masks(tmp_path):
    c = config()
    state, _ = foreign(c)
    name = next(n for n, s in list_parameters(c.trainer.init.model).items() if s.kind == "linear")
    off = torch.rand_like(state["model"][name]) < 0.5
    state["model"][name][off] = float("nan")
    path = str(tmp_path / "zoo.mdl")
    write_mdl(path, state)
    files, ours = convert_from_zoo(path, read_mdl(path, SECTIONS), c.trainer.init, None)
    assert torch.equal(files["model"][f"{name}_mask"], ~off) and ours["finite"]
    assert (files["model"][name][off] == 0).all()


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda s: [s["model"].pop(k) for k in [*s["model"]] if "norm.w" in k or "ln_f.w" in k], "lacks model.ln_f"),
        (lambda s: s["model"].update({"model.extra": torch.ones(1)}), "model.extra"),
        (lambda s: s["model"].update({"model.ln_f.weight": torch.ones(3)}), "model.ln_f.weight is [3]"),
        (lambda s: s["model"].update({"model.lm_head.weight": torch.ones(37, 16)}), "share_embedding_weights"),
        (lambda s: s["optimizer"]["state"][0].update(exp_avg=torch.ones(3)), "--weights"),
        (lambda s: s["optimizer"]["state"].update({99: {"exp_avg": torch.ones(3)}}), "optimizer.state.99"),
        (lambda s: s.pop("model"), "holds no model"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_config_is_named(tmp_path, change, message):
    c = config()
    state, _ = foreign(c)
    change(state)
    path = str(tmp_path / "zoo.mdl")
    write_mdl(path, state)
    with pytest.raises(UserError, match=re.escape(message)) as e:
        convert_from_zoo(path, read_mdl(path, SECTIONS), c.trainer.init, None)
    assert str(e.value).startswith(path)
