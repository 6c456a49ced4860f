"""What comes in from others: damaged, hostile or half-written, it is one line, and nothing of it stays."""

import json
import os
import pickle
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import load_file, save_file

from modelzoo.cli import main
from modelzoo.config.errors import UserError
from modelzoo.config.loading.load import load, resolve, validate
from modelzoo.config.trainer import Config
from modelzoo.evaluation.inference.exported import load_exported
from modelzoo.interop.adapters import lora, soft_prompt
from modelzoo.interop.cards.header import split_card
from modelzoo.interop.hf.families import GPT2
from modelzoo.interop.importing.import_checkpoint import import_checkpoint
from modelzoo.interop.mdl import file as mdl
from modelzoo.interop.mdl import state as mdl_state
from modelzoo.interop.mdl.seal import SEAL
from modelzoo.planning.start_checkpoint import complete_model
from modelzoo.training.checkpoints import checkpoint, saving
from tests.faults.mutate_bytes import flip_bit
from tests.faults.mutate_hdf5 import mutate_mdl
from tests.faults.mutate_json import mutate_json
from tests.faults.mutate_safetensors import mutate_safetensors
from tests.support import examples, write_manifest, write_shard

CANARY = "canary-of-a-cluster"
CONFIG = """
trainer:
  init:
    backend: {backend_type: CPU, cluster_config: {mgmt_address: 'CANARY:1', job_labels: [team=CANARY]}}
    model: {hidden_size: 8, num_hidden_layers: 1, num_heads: 2, filter_size: 16, vocab_size: 40,
            max_position_embeddings: 8, dropout_rate: 0.0, attention_dropout_rate: 0.0}
    optimizer: {AdamW: {lr: 0.01}}
    precision: {enabled: false}
    SECTION
    loop: {max_steps: 1}
  fit: {train_dataloader: {data_dir: DATA, batch_size: 4}}
"""
SECTIONS = {
    "sparse": "sparsity: {sparsity: 0.5, param_filter: '*linear_layer.weight'}",
    "lora": "lora: {r: 2}",
    "prompt": "soft_prompt: {tokens: 2, place: prefix}",
}


def run(*argv) -> int:
    return main([str(a) for a in argv])


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Runs of one step, and what they export: sparse/, lora/, prompt/; m.mdl; parts/, a GPT-2 in two files."""
    at = tmp_path_factory.mktemp("world")
    write_shard(at / "data/train/output_chunk_0_0.h5", examples(8, vocab=38))
    write_manifest(at / "data/train", eos_id=0, msl=8)
    for name, section in SECTIONS.items():
        text = CONFIG.replace("DATA", str(at / "data/train")).replace("SECTION", section).replace("CANARY", CANARY)
        (at / f"{name}.yaml").write_text(text)
        assert run("CPU", "-p", at / f"{name}.yaml", "-m", "train", "-o", at / f"run_{name}") == 0
        assert run("export", at / f"run_{name}", at / name) == 0
    assert run("export", at / "run_sparse", at / "m.mdl") == 0
    weights = load_file(at / "sparse/model.safetensors")
    names, parts = sorted(weights), at / "parts"
    parts.mkdir()
    shutil.copy(at / "sparse/config.json", parts)
    places = {n: f"{'ab'[i % 2]}.safetensors" for i, n in enumerate(names)}
    for file in set(places.values()):
        save_file({n: weights[n] for n in names if places[n] == file}, parts / file)
    (parts / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return at


def import_folder(folder: Path) -> dict:
    out = str(folder.parent / "imported")
    shutil.rmtree(out, ignore_errors=True)
    import_checkpoint(str(folder), out)
    return checkpoint.load(os.path.join(out, "checkpoints/step_0"))[0]["model"]


def read_mdl(path: Path) -> dict:
    init = load(path.parent / "sparse.yaml", Config).trainer.init
    return mdl_state.convert_from_zoo(str(path), mdl.read_mdl(str(path), mdl_state.SECTIONS), init, "data")[0]


def same(a: object, b: object) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b


def is_one_line(error: UserError) -> bool:
    return str(error).isprintable() and len(str(error)) < 1000


def test_no_flipped_bit_of_an_export_changes_what_is_read(world, tmp_path):
    expected, draw = import_folder(Path(shutil.copytree(world / "sparse", tmp_path / "f"))), Random(1)
    for _ in range(120):
        path = draw.choice(sorted(p for p in (tmp_path / "f").iterdir()))
        whole = path.read_bytes()
        path.write_bytes(flip_bit(whole, draw))
        try:
            assert same(import_folder(tmp_path / "f"), expected)
        except UserError as e:
            assert is_one_line(e) and (path.name in str(e) or path.name == "checksums.json")
        path.write_bytes(whole)


def test_no_flipped_bit_of_a_mdl_changes_what_is_read_nor_reaches_hdf5(world, tmp_path):
    whole, draw = (world / "m.mdl").read_bytes(), Random(2)
    shutil.copy(world / "sparse.yaml", tmp_path)
    expected, refused = read_mdl(world / "m.mdl"), 0
    for _ in range(250):
        (tmp_path / "m.mdl").write_bytes(flip_bit(whole, draw))
        try:
            assert same(read_mdl(tmp_path / "m.mdl"), expected)
        except UserError as e:
            assert is_one_line(e) and "SHA-256 differs" in str(e)
            refused += 1
    assert refused > 200
    at = whole.rindex(b"sha256")  # a seal that is none any more leaves a file as Model Zoo writes it
    (tmp_path / "m.mdl").write_bytes(whole[:at] + b"S" + whole[at + 1 :])
    assert same(read_mdl(tmp_path / "m.mdl"), expected)


def test_a_mdl_without_a_seal_that_ends_hdf5_is_refused_in_one_line(world, tmp_path, monkeypatch):
    """A bit of a chunk's index or of its lz4 frame can end the process; a fork meets it first."""
    whole, draw = (world / "m.mdl").read_bytes(), Random(4)
    whole = whole[: whole.rindex(SEAL)]
    shutil.copy(world / "sparse.yaml", tmp_path)
    for _ in range(20):
        (tmp_path / "m.mdl").write_bytes(flip_bit(whole, draw))
        try:
            read_mdl(tmp_path / "m.mdl")
        except UserError as e:
            assert is_one_line(e)
    monkeypatch.setattr(mdl, "read_leaves", lambda *rest: os.kill(os.getpid(), signal.SIGSEGV))
    (tmp_path / "m.mdl").write_bytes(whole)
    with pytest.raises(UserError, match=r"m\.mdl: HDF5 itself fails on it \(SIGSEGV\).*take another copy") as e:
        read_mdl(tmp_path / "m.mdl")
    assert is_one_line(e.value)


def complete(folder: Path) -> dict:
    (folder.parent / "bare.yaml").write_text("trainer: {init: {}, finetune: {task: pubmedqa}}")
    doc = resolve(str(folder.parent / "bare.yaml"), Config)
    complete_model(doc, str(folder))
    return validate(doc, Config).model_dump()


def model_of(folder: Path):
    return load(folder.parent / "sparse.yaml", Config).trainer.init.model


def read_lora(folder: Path) -> object:
    return lora.read_lora(str(folder / "adapter"), model_of(folder), GPT2)


def read_prompt(folder: Path) -> object:
    return soft_prompt.read_prompt(str(folder / "adapter"), model_of(folder))


KINDS: dict[str, tuple[str, str, Callable, Callable]] = {
    "a GPT-2's config": ("sparse", "config.json", mutate_json, import_folder),
    "a GPT-2's header": ("sparse", "model.safetensors", mutate_safetensors, import_folder),
    "masks": ("sparse", "masks.safetensors", mutate_safetensors, import_folder),
    "an index": ("parts", "model.safetensors.index.json", mutate_json, import_folder),
    "LoRA's config": ("lora", "adapter/adapter_config.json", mutate_json, read_lora),
    "LoRA's header": ("lora", "adapter/adapter_model.safetensors", mutate_safetensors, read_lora),
    "a prompt's config": ("prompt", "adapter/adapter_config.json", mutate_json, read_prompt),
    "a state": ("run_sparse/checkpoints/step_1", "state.json", mutate_json, complete),
}


@pytest.mark.parametrize("kind", KINDS)
def test_mutants_are_one_line_or_read(world, tmp_path, kind):
    source, file, mutate, read = KINDS[kind]
    folder, draw = Path(shutil.copytree(world / source, tmp_path / "f")), Random(kind)
    shutil.copy(world / "sparse.yaml", tmp_path)
    for path in folder.rglob("checksums.json"):
        path.unlink()
    whole, refused = (folder / file).read_bytes(), 0
    read(folder)
    for _ in range(25):
        (folder / file).write_bytes(mutate(whole, draw))
        try:
            read(folder)
        except UserError as e:
            assert is_one_line(e)
            refused += 1
    assert refused


def test_mutants_of_a_mdl_are_one_line_or_read(world, tmp_path):
    whole, draw, refused = (world / "m.mdl").read_bytes(), Random(3), 0
    shutil.copy(world / "sparse.yaml", tmp_path)
    for _ in range(25):
        (tmp_path / "m.mdl").write_bytes(mutate_mdl(whole, draw, str(world / "data/train/output_chunk_0_0.h5")))
        try:
            read_mdl(tmp_path / "m.mdl")
        except UserError as e:
            assert is_one_line(e)
            refused += 1
    assert refused


SIZES = {
    "n_layer": (2**32, True, -1, 0, 1.5, "2", [2]), "n_embd": (10**9, "8", float("nan"), 9),
    "n_head": (3, 0, -2), "activation_function": ("magic", 1), "vocab_size": (10**12, [], 41),
    "layer_norm_epsilon": (-1e-5, "x", True), "tie_word_embeddings": (1, "yes"), "n_positions": (2**40, 0),
    "resid_pdrop": (1.5, -0.1), "model_type": (None, 3, "bloom"),
}  # fmt: skip


@pytest.mark.parametrize("key", SIZES)
def test_a_config_with_an_impossible_value_names_the_key(world, tmp_path, key):
    folder = Path(shutil.copytree(world / "sparse", tmp_path / "f"))
    (folder / "checksums.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    for value in SIZES[key]:
        (folder / "config.json").write_text(json.dumps({**config, key: value}))
        with pytest.raises(UserError) as e:
            import_folder(folder)
        assert is_one_line(e.value) and str(e.value).startswith(str(folder))
        assert any(word in str(e.value) for word in (key, "holds NaN", "the weights hold")), e.value
        assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize("change,message", [
    ({"x": "../sparse/model.safetensors"}, "is no safetensors file of this folder"),
    ({"x": "/etc/passwd"}, "is no safetensors file of this folder"),
    ({"x": "c.safetensors"}, r"c\.safetensors: missing"),
    ({"x": "a.safetensors"}, r"x is not in a\.safetensors"),
])  # fmt: skip
def test_an_index_names_what_is_in_its_folder(world, tmp_path, change, message):
    folder = Path(shutil.copytree(world / "parts", tmp_path / "f"))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"] |= change
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=message):
        import_folder(folder)


def test_a_tensor_in_two_files_is_refused(world, tmp_path):
    folder = Path(shutil.copytree(world / "parts", tmp_path / "f"))
    parts = [load_file(folder / f"{n}.safetensors") for n in "ab"]
    name = next(iter(parts[0]))
    save_file({**parts[1], name: parts[0][name] + 1}, folder / "b.safetensors")
    with pytest.raises(UserError, match="and elsewhere too"):
        import_folder(folder)


class Trap:
    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "model.pkl"])
def test_pickles_are_refused_and_never_run(world, tmp_path, name, capsys):
    folder = Path(shutil.copytree(world / "sparse", tmp_path / "f"))
    for stem in ("model.safetensors", "masks.safetensors", "checksums.json"):
        (folder / stem).unlink()
    (folder / name).write_bytes(pickle.dumps(Trap(tmp_path / "trap")))
    adapter = Path(shutil.copytree(world / "lora/adapter", tmp_path / "adapter"))
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "checksums.json").unlink()
    shutil.copy(folder / name, adapter / "adapter_model.bin")
    for source in (folder, folder / name):
        assert run("import", source, tmp_path / "out") == 2
        error = capsys.readouterr().err
        assert "pickled and could run code" in error and "save_pretrained" in error and len(error.splitlines()) == 1
    with pytest.raises(UserError, match="pickled and could run code"):
        load_exported(str(folder), torch.device("cpu"))
    with pytest.raises(UserError, match="pickled and could run code"):
        lora.read_lora(str(adapter), load(world / "sparse.yaml", Config).trainer.init.model, GPT2)
    assert not (tmp_path / "trap").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("source", ["sparse", "m.mdl"])
def test_a_failed_import_leaves_nothing_and_can_be_repeated(world, tmp_path, monkeypatch, source, capsys):
    """A disk that is full at the n-th file, for every n."""
    from modelzoo import files

    words = ("import", world / source, tmp_path / "out", "-p", world / "sparse.yaml")
    real, failures = files.sync, 0
    for n in range(100):
        left = [n]

        def sync(path: str, left=left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(28, "No space left on device", path)
            real(path)

        with monkeypatch.context() as m:
            m.setattr(saving, "sync", sync)
            code = run(*words)
        if code == 0:
            break
        error = capsys.readouterr().err
        assert code == 2 and len(error.splitlines()) == 1 and ".tmp" not in error and str(tmp_path / "out") in error
        assert os.listdir(tmp_path) == []
        failures += 1
    assert failures > 2 and (tmp_path / "out/config.yaml").exists()


def test_an_import_goes_into_a_folder_of_its_own(world, tmp_path, capsys):
    shutil.copytree(world / "run_sparse", tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("mine")
    (tmp_path / "away").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "away")
    (tmp_path / "file").write_text("")
    for name in ("run", "other", "link", "file"):
        assert run("import", world / "sparse", tmp_path / name) == 2
        assert "give another folder" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["away", "file", "link", "other", "run"]
    assert not list((tmp_path / "away").iterdir())
    (tmp_path / "empty").mkdir()
    assert run("import", world / "sparse", tmp_path / "empty") == 0


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no FIFOs")
def test_a_tokenizer_that_never_ends_is_refused(world, tmp_path, capsys):
    folder = Path(shutil.copytree(world / "sparse", tmp_path / "f"))
    os.mkfifo(folder / "vocab.json")
    assert run("import", folder, tmp_path / "half") == 0
    assert "vocab.json: is half of a tokenizer; merges.txt is not there" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "half")
    os.mkfifo(folder / "merges.txt")
    assert run("import", folder, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "vocab.json: tokenizer cannot be read: is not a regular file" in error and not (tmp_path / "out").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_an_export_writes_through_no_link(world, tmp_path, capsys):
    for name in ("out", "out.mdl"):
        (tmp_path / name).symlink_to(tmp_path / "elsewhere")
        assert run("export", world / "run_sparse", tmp_path / name) == 2
        assert "exists" in capsys.readouterr().err
    assert not (tmp_path / "elsewhere").exists()


def test_names_stay_text_in_the_card(world, tmp_path):
    out = tmp_path / "<img src=x onerror=alert(1)>\n# Approved [link](javascript:x)\n---\nlicense: mit"
    assert run("export", world / "run_prompt", out) == 0
    card = (out / "README.md").read_text()
    assert "<img" not in card and "](javascript" not in card and "\n# Approved" not in card
    facts, body = split_card(card, "README.md")
    assert facts.keys() == {"language", "library_name", "pipeline_tag", "tags"} and body.startswith("\n# &#60;img")


def test_a_mask_that_switches_off_what_is_there_is_refused(world, tmp_path, capsys):
    folder = Path(shutil.copytree(world / "sparse", tmp_path / "f"))
    (folder / "checksums.json").unlink()
    masks = load_file(folder / "masks.safetensors")
    name = sorted(masks)[0]
    save_file({**masks, name: torch.zeros_like(masks[name])}, folder / "masks.safetensors")
    assert run("import", folder, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert re.search(r"f: masks.safetensors switches off \d+ weights of model\S+ that are not 0; it is damaged", said)
    assert not (tmp_path / "out").exists()


def test_a_parameter_that_no_mdl_holds_is_named_with_its_checkpoint(world, tmp_path, capsys):
    files, state = checkpoint.load(checkpoint.newest(str(world / "run_sparse/checkpoints"))[0])
    files["model"]["x" * 1000] = torch.ones(2)
    step = saving.save(str(tmp_path / "run/checkpoints"), 1, files, state, None)
    assert run("export", step, tmp_path / "out.mdl", "-p", world / "sparse.yaml") == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {step}: 'xxx") and "Model Zoo's GPT has no such parameter" in said
    assert len(said) < 500 and not (tmp_path / "out.mdl").exists()


def test_an_adapter_that_is_not_imported_is_named(world, tmp_path, capsys):
    assert run("import", world / "lora", tmp_path / "out") == 0
    assert f"note       {world / 'lora/adapter'} is not imported, the base model alone is" in capsys.readouterr().out


def test_nothing_of_a_cluster_is_exported(world):
    assert CANARY in (world / "run_sparse/config.yaml").read_text()
    files = [p for name in ("sparse", "lora", "prompt") for p in (world / name).rglob("*") if p.is_file()]
    assert len(files) > 15
    for path in [*files, world / "m.mdl"]:
        assert CANARY.encode() not in path.read_bytes(), path


def test_a_model_is_not_scored_with_invented_weights(world, tmp_path, capfd):
    pytest.importorskip("transformers")
    folder = Path(shutil.copytree(world / "sparse", tmp_path / "f"))
    load_exported(str(folder), torch.device("cpu"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "n_layer": 2}))
    with pytest.raises(UserError, match=r"config\.json: has .* bytes|config\.json: its SHA-256"):
        load_exported(str(folder), torch.device("cpu"))
    (folder / "checksums.json").unlink()
    with pytest.raises(UserError, match=r"lacks transformer\.h\.1"):
        load_exported(str(folder), torch.device("cpu"))
    for key, value in {"n_layer": 2**32, "vocab_size": 2**23, "n_positions": 2**23, "n_head": "2"}.items():
        (folder / "config.json").write_text(json.dumps({**config, key: value}))
        with pytest.raises(UserError, match=key):
            load_exported(str(folder), torch.device("cpu"))
    (folder / "config.json").write_text(json.dumps({**config, "n_positions": config["n_positions"] // 2}))
    with pytest.raises(UserError, match=r"f: has another shape of transformer\.wpe\.weight than its config\.json asks"):
        load_exported(str(folder), torch.device("cpu"))
    assert not any(capfd.readouterr())  # no table of transformers'


def test_a_tokenizer_of_another_kind_is_not_left_out_in_silence(world, tmp_path, capsys):
    folder = Path(shutil.copytree(world / "sparse", tmp_path / "f"))
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (folder / name).unlink(missing_ok=True)
    (folder / "checksums.json").unlink(missing_ok=True)
    (folder / "spiece.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00")
    assert run("import", folder, tmp_path / "out") == 0
    assert re.search(r"no tokenizer was taken: .*spiece\.model: is a SentencePiece model", capsys.readouterr().out)
