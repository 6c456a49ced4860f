"""`run.py export` and `import` end to end: the folder, its logits, its card, and what is refused."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from modelzoo.cli import main
from modelzoo.config.loading.load import load
from modelzoo.config.trainer import Config
from modelzoo.models.gpt import GPTModel
from modelzoo.sparsity.select import live_count
from modelzoo.training.checkpoints import checkpoint
from tests.interop.words import train_words
from tests.support import examples, write_manifest, write_shard

transformers = pytest.importorskip("transformers")
CONFIG = """
trainer:
  init:
    model: {MODEL hidden_size: 16, num_hidden_layers: 2, num_heads: 2, filter_size: 32, vocab_size: 300,
            max_position_embeddings: 8, dropout_rate: 0.0, attention_dropout_rate: 0.0}
    optimizer: {AdamW: {lr: 0.01}}
    precision: {enabled: false}
    sparsity: {algorithm: rigl, sparsity: 0.75, update: {freq: 2}, param_filter: '*linear_layer.weight'}
    loop: {max_steps: 4}
  fit: {train_dataloader: {data_dir: DATA, batch_size: 4}}
"""


def run(*argv) -> int:
    return main([str(a) for a in argv])


@pytest.fixture(scope="module")
def words() -> str:
    """A byte-level tokenizer of 300 entries, `<|endoftext|>` first, as preprocessing trains it."""
    return train_words()


@pytest.fixture(scope="module")
def trained(tmp_path_factory, words):
    """A run of four steps, with its tokenizer beside the data."""
    folder = tmp_path_factory.mktemp("trained")
    write_shard(folder / "data/train/output_chunk_0_0.h5", examples(16, vocab=270))
    write_manifest(folder / "data/train", eos_id=0, msl=8)
    (folder / "data/tokenizer.json").write_text(words)
    (folder / "c.yaml").write_text(CONFIG.replace("DATA", str(folder / "data/train")).replace("MODEL", ""))
    assert run("CPU", "-p", folder / "c.yaml", "-m", "train", "-o", folder / "run") == 0
    return folder / "run"


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "mediswift-tiny"
    assert run("export", trained, out) == 0
    return out


def ours(folder) -> GPTModel:
    files, _ = checkpoint.load(checkpoint.newest(str(folder / "checkpoints"))[0])
    model = GPTModel(load(folder / "config.yaml", Config).trainer.init.model)
    model.load_state_dict({n: x for n, x in files["model"].items() if not n.endswith("_mask")}, strict=False)
    return model.eval()


def test_the_folder_is_whole_and_computes_the_same(trained, exported):
    assert {p.name for p in exported.iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors", "masks.safetensors", "README.md"),
        *("tokenizer.json", "tokenizer_config.json", "checksums.json"),
    }
    theirs = transformers.AutoModelForCausalLM.from_pretrained(exported).eval()
    assert type(theirs).__name__ == "GPT2LMHeadModel"
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    assert tokenizer.eos_token_id == 0 == theirs.generation_config.eos_token_id
    assert tokenizer.decode(tokenizer("aspirin lowers")["input_ids"]) == "aspirin lowers"
    ids = torch.randint(0, 300, (3, 8), generator=torch.Generator().manual_seed(1))
    model = ours(trained)
    with torch.no_grad():
        found, expected = theirs(ids).logits, model.model.logits(model.model.hidden(ids))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_blocks_in_an_order_of_inputs_go_out_as_any_weights(trained, tmp_path):
    """No permutation is left to apply: equal logits, and the zeros of the checkpoint's masks; the way back too."""
    config, out = tmp_path / "c.yaml", tmp_path / "out"
    sparsity = "[{sparsity: 0.75, block: [4, 4], init_method: topk, permute_inputs: start}]"
    config.write_text(f"extends: {trained.parent / 'c.yaml'}\ntrainer: {{init: {{sparsity: {sparsity}}}}}\n")
    assert run("CPU", "-p", config, "-m", "train", "-o", tmp_path / "run", "--max_steps", 2) == 0
    assert run("export", tmp_path / "run", out) == 0
    theirs, model = transformers.AutoModelForCausalLM.from_pretrained(out).eval(), ours(tmp_path / "run")
    ids = torch.randint(0, 300, (3, 8), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(
            theirs(ids).logits, model.model.logits(model.model.hidden(ids)), rtol=1e-5, atol=1e-5
        )
    assert run("import", out, tmp_path / "back", "-p", config) == 0
    back, mine = (
        checkpoint.load(checkpoint.newest(str(tmp_path / n / "checkpoints"))[0])[0]["model"] for n in ("back", "run")
    )
    assert back.keys() == mine.keys() and all(torch.equal(back[n], mine[n]) for n in mine)
    words = ["--checkpoint_path", tmp_path / "back/checkpoints/step_0", "--load_checkpoint_states", "model,sparsity"]
    assert run("CPU", "-p", config, "-m", "train", "-o", tmp_path / "on", "--max_steps", 1, *words) == 0


def test_masks_in_the_side_file_cover_what_is_zero(exported):
    weights, masks = load_file(exported / "model.safetensors"), load_file(exported / "masks.safetensors")
    assert sorted(masks) == sorted(f"transformer.h.{i}.mlp.{m}.weight" for i in (0, 1) for m in ("c_fc", "c_proj"))
    for name, mask in masks.items():
        assert mask.dtype == torch.bool and not (weights[name] * ~mask).any()
        assert int(mask.sum()) == live_count(mask.numel(), 0.75)


def test_the_card_states_the_counts_and_the_warning(trained, exported):
    text = (exported / "README.md").read_text()
    state = checkpoint.load(checkpoint.newest(str(trained / "checkpoints"))[0])[1]
    counted = "dense-equivalent {1:.4g}, sparse {0:.4g}".format(*state["flops"])  # RigL's dense gradients included
    assert f"| Training FLOPs in all | {counted} |" in text
    weights, masks = load_file(exported / "model.safetensors"), load_file(exported / "masks.safetensors")
    total = sum(x.numel() for x in weights.values())
    off = sum(int((~m).sum()) for m in masks.values())
    linear = 2 * 12 * 16 * 16 - 2 * (12 - 4) * 16 * 16 + 2 * 2 * 16 * 32  # q, k, v, output: 4 d^2; ffn: 2 d f
    dense = 6 * linear + 12 * 2 * 8 * 16 + 6 * 16 * 300
    sparse = dense - 6 * off
    for fact in (
        *("Not for clinical use", "rigl, sparsity 0.75", "every 2 steps", "4 steps, 128 tokens"),
        *(f"| Parameters in all | {total:,} |", f"| {total - off:,} |", f"{dense:.4g}", f"{sparse:.4g}"),
        f"{dense / sparse:.3f}x",
    ):
        assert fact in text, fact
    header = text.split("---")[1]
    assert "library_name: transformers" in header and "pipeline_tag: text-generation" in header


def test_a_folder_goes_out_and_comes_back(trained, exported, tmp_path, capsys):
    """Export, then import: the same weights and masks, and training goes on from them."""
    config = trained.parent / "c.yaml"
    assert run("import", exported, tmp_path / "back", "-p", config) == 0
    command = re.search(r"next +python run\.py (.*)", capsys.readouterr().out)[1]
    back = checkpoint.load(str(tmp_path / "back/checkpoints/step_0"))[0]["model"]
    mine = checkpoint.load(checkpoint.newest(str(trained / "checkpoints"))[0])[0]["model"]
    assert back.keys() == mine.keys()
    assert all(torch.equal(back[n], mine[n]) for n in mine)
    assert run(*command.split(), "--max_steps", "2", "--set", "trainer.init.backend.backend_type=CPU") == 0
    assert "weights    from" in capsys.readouterr().err


def test_an_imported_run_keeps_its_tokenizer_on_the_way_out(exported, tmp_path):
    assert run("import", exported, tmp_path / "run") == 0
    assert run("export", tmp_path / "run", tmp_path / "again") == 0
    for name in ("model.safetensors", "masks.safetensors", "tokenizer.json"):
        assert (tmp_path / "again" / name).read_bytes() == (exported / name).read_bytes(), name


def test_the_configs_own_tokenizer_goes_before_the_datas(trained, words, tmp_path):
    (tmp_path / "tokenizer.json").write_text(words + "\n")
    own = tmp_path / "c.yaml"
    own.write_text(
        (trained.parent / "c.yaml").read_text().replace("  init:\n", f"  init:\n    tokenizer: {tmp_path}\n")
    )
    assert run("export", trained, tmp_path / "out", "-p", own) == 0
    assert (tmp_path / "out/tokenizer.json").read_text() == words + "\n"


def test_a_gpt2_of_transformers_trains_here(trained, tmp_path, capsys):
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=300,
            n_positions=8,
            n_embd=16,
            n_layer=2,
            n_head=4,
            initializer_range=0.2,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
        )
    ).eval()
    theirs.save_pretrained(tmp_path / "gpt2")
    assert run("import", tmp_path / "gpt2", tmp_path / "run") == 0
    model = ours(tmp_path / "run")
    ids = torch.randint(0, 300, (2, 8), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(
            model.model.logits(model.model.hidden(ids)), theirs(ids).logits, rtol=1e-5, atol=1e-5
        )
    assert run("export", tmp_path / "run", tmp_path / "again") == 0
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    for name, x in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], x), name
    path = tmp_path / "run/checkpoints/step_0"
    settings = [
        f"trainer.fit.train_dataloader.data_dir={trained.parent / 'data/train'}",
        "trainer.init.loop.max_steps=1",
    ]
    settings += ["trainer.fit.train_dataloader.batch_size=4", "trainer.init.precision.enabled=false"]
    flags = [x for s in settings for x in ("--set", s)] + [
        "--checkpoint_path",
        path,
        "--load_checkpoint_states",
        "model",
    ]
    assert run("CPU", "-p", tmp_path / "run/config.yaml", "-m", "train", "-o", tmp_path / "on", *flags) == 0
    first = json.loads((tmp_path / "on/metrics.jsonl").read_text().splitlines()[0])["loss"]
    data = torch.from_numpy(examples(16, vocab=270)).long()[:4]
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(theirs(data[:, 0]).logits.flatten(0, 1), data[:, 2].flatten())
    assert first == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("kind", ["GPTNeoX", "Llama", "GPTJ"])
def test_models_of_transformers_come_in_train_sparsely_and_go_out(trained, tmp_path, kind, capsys):
    """The logits are those of transformers at both ends; a run that was cut in the middle ends with the same bits."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    if kind == "Llama":
        sizes = {**sizes, "num_attention_heads": 4, "num_key_value_heads": 2}
    old = {"n_embd": 16, "n_layer": 2, "n_head": 2, "rotary_dim": 4}
    config = getattr(transformers, f"{kind}Config")(
        **(old if kind == "GPTJ" else sizes), vocab_size=300, initializer_range=0.2, bos_token_id=0, eos_token_id=0
    )
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    yaml = trained.parent / "c.yaml"
    assert run("import", tmp_path / "theirs", tmp_path / "run", "-p", yaml) == 0
    ids = torch.randint(0, 300, (2, 8), generator=torch.Generator().manual_seed(1))
    command = re.search(r"next +python run\.py (.*)", capsys.readouterr().out)[1].split()
    model = ours(tmp_path / "run")
    with torch.no_grad():
        found, wanted = model.model.logits(model.model.hidden(ids)), theirs(ids).logits
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert run("export", tmp_path / "run", tmp_path / "again") == 0
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert type(again) is type(theirs)
    for name, x in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], x), name
    command = ["CPU", *command[:-4], "--checkpoint_path", command[-3], "--load_checkpoint_states", "model"]
    command = [str(tmp_path / "whole") if x == str(tmp_path / "run") else x for x in command]
    assert run(*command, "--max_steps", "4") == 0
    parts = [str(tmp_path / "parts") if x == str(tmp_path / "whole") else x for x in command]
    assert run(*parts, "--max_steps", "2") == 0 and run(*parts[:-4], "--max_steps", "4") == 0
    one, other = (checkpoint.load(str(tmp_path / n / "checkpoints/step_4"))[0] for n in ("whole", "parts"))
    assert one["model"].keys() == other["model"].keys() and any(n.endswith("_mask") for n in one["model"])
    for part in one:
        for name, x in one[part].items():
            assert torch.equal(x, other[part][name]), (part, name)
    assert run("export", tmp_path / "whole", tmp_path / "sparse") == 0
    sparse, model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "sparse"), ours(tmp_path / "whole")
    with torch.no_grad():
        found, wanted = sparse(ids).logits, model.model.logits(model.model.hidden(ids))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_other_dtypes(trained, tmp_path):
    assert run("export", trained, tmp_path / "half", "--dtype", "bfloat16") == 0
    assert {x.dtype for x in load_file(tmp_path / "half/model.safetensors").values()} == {torch.bfloat16}
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype="auto")
    assert model.dtype == torch.bfloat16


def test_refusals_leave_nothing(trained, exported, tmp_path, capsys):
    def refused(message: str, *argv) -> None:
        before = sorted(p.name for p in tmp_path.rglob("*"))
        assert run(*argv) == 2
        error = capsys.readouterr().err
        assert re.search(message, error) and "Traceback" not in error and len(error.splitlines()) == 1, error
        assert sorted(p.name for p in tmp_path.rglob("*")) == before

    (tmp_path / "there").mkdir()
    refused("there: exists", "export", trained, tmp_path / "there")
    refused("no whole checkpoint", "export", tmp_path / "there", tmp_path / "x")
    refused("holds no tokenizer", "export", trained, tmp_path / "x", "--tokenizer", tmp_path / "there")
    refused("name the run's config with -p", "export", _alone(trained, tmp_path), tmp_path / "x.mdl")
    refused("does not hold its model", "import", _mdl(trained, tmp_path), tmp_path / "x")
    refused("config.json: missing", "import", tmp_path / "there", tmp_path / "x")
    shutil.copytree(exported, tmp_path / "bad")
    config = json.loads((exported / "config.json").read_text())
    (tmp_path / "bad/config.json").write_text(json.dumps({**config, "n_embd": 32, "n_inner": 64}))
    refused("config.json: has .* bytes where .* were exported; .* remove checksums.json", "import", tmp_path / "bad",
            tmp_path / "x")  # fmt: skip
    (tmp_path / "bad/checksums.json").unlink()
    refused(r"bad: its config asks for .* \[300, 32\]", "import", tmp_path / "bad", tmp_path / "x")
    (tmp_path / "bad/config.json").write_text(json.dumps({**config, "model_type": "bloom"}))
    refused("model_type 'bloom'; can be imported: gpt2", "import", tmp_path / "bad", tmp_path / "x")
    (tmp_path / "bad/config.json").write_text(json.dumps(config))
    (tmp_path / "bad/model.safetensors").rename(tmp_path / "bad/pytorch_model.bin")
    refused("pickled", "import", tmp_path / "bad", tmp_path / "x")
    small = {"tokenizer.json": {"model": {"vocab": {"a": 0, "b": 300}}}}
    (tmp_path / "there/tokenizer.json").write_text(json.dumps(small["tokenizer.json"]))
    refused("not its tokenizer", "export", trained, tmp_path / "x", "--tokenizer", tmp_path / "there")


def _alone(trained, folder):
    target = folder / "alone" / "a" / "step_4"
    shutil.copytree(checkpoint.newest(str(trained / "checkpoints"))[0], target)
    return target


def _mdl(trained, folder):
    assert run("export", trained, folder / "m.mdl") == 0
    return folder / "m.mdl"


def test_rates_that_a_mdl_has_no_place_for_stay_in_the_config(trained, tmp_path, capsys):
    """Sparse muP: the export says so, and what is imported trains on at the rates that the run had."""
    level = "{sparsity: 0.75, mup_base_density: 1.0, param_filter: '*linear_layer.weight'}"
    args = ("CPU", "-p", trained.parent / "c.yaml", "-m", "train", "--set", f"trainer.init.sparsity={level}")
    assert run(*args, "-o", tmp_path / "run", "--max_steps", 3) == 0
    capsys.readouterr()
    assert run("export", tmp_path / "run", tmp_path / "m.mdl") == 0
    config = tmp_path / "run" / "config.yaml"
    assert f"mup_base_density's learning-rate factors stay in {config}" in capsys.readouterr().out
    assert run("import", tmp_path / "m.mdl", tmp_path / "back", "-p", config) == 0
    ends = []
    for folder in ("run", "back"):
        again = ("CPU", "-p", tmp_path / folder / "config.yaml", "-m", "train", "-o", tmp_path / folder)
        assert run(*again, "--max_steps", 6) == 0
        ends.append(checkpoint.load(checkpoint.newest(str(tmp_path / folder / "checkpoints"))[0])[0]["model"])
    assert all(torch.equal(x, ends[1][n]) for n, x in ends[0].items())
    capsys.readouterr()
    assert run("export", trained, tmp_path / "plain.mdl") == 0
    assert "mup_base_density" not in capsys.readouterr().out


def test_a_model_without_an_architecture_is_named(tmp_path, capsys):
    write_shard(tmp_path / "data/output_chunk_0_0.h5", examples(8))
    text = CONFIG.replace("DATA", str(tmp_path / "data")).replace("MODEL", "position_embedding_type: alibi,")
    (tmp_path / "c.yaml").write_text(text)
    assert run("CPU", "-p", tmp_path / "c.yaml", "-m", "train", "-o", tmp_path / "run", "--max_steps", "1") == 0
    assert run("export", tmp_path / "run", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "alibi" in error and "MptForCausalLM" in error and "biases" in error and not (tmp_path / "out").exists()


def test_a_sharded_gpt2_comes_in(exported, tmp_path):
    weights = load_file(exported / "model.safetensors")
    (tmp_path / "gpt2").mkdir()
    shutil.copy(exported / "config.json", tmp_path / "gpt2")
    names = sorted(weights)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, mine in parts.items():
        save_file({n: weights[n] for n in mine}, tmp_path / "gpt2" / file)
    index = {"weight_map": {n: file for file, mine in parts.items() for n in mine}}
    (tmp_path / "gpt2/model.safetensors.index.json").write_text(json.dumps(index))
    assert run("import", tmp_path / "gpt2", tmp_path / "run") == 0
    assert ours(tmp_path / "run").model.config.hidden_size == 16
    index["weight_map"][names[0]] = "../outside.safetensors"
    (tmp_path / "gpt2/model.safetensors.index.json").write_text(json.dumps(index))
    assert run("import", tmp_path / "gpt2", tmp_path / "other") == 2


@pytest.mark.slow
def test_lm_eval_scores_what_we_score(trained, exported):
    """lm-eval's own Hugging Face model gives each continuation the log-likelihood that ours does."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (pip install lm-eval)")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    harness = HFLM(pretrained=str(exported), device="cpu", dtype="float32", batch_size=2)
    pairs = [("aspirin", " lowers"), ("the", " fever"), ("fever", " and the")]
    requests = [Instance("loglikelihood", {}, p, i) for i, p in enumerate(pairs)]
    found = harness.loglikelihood(requests, disable_tqdm=True)
    tokenizer, model = transformers.AutoTokenizer.from_pretrained(exported), ours(trained)
    for (before, after), (score, _) in zip(pairs, found, strict=True):
        a, both = tokenizer(before)["input_ids"], tokenizer(before + after)["input_ids"]
        with torch.no_grad():
            logits = model.model.logits(model.model.hidden(torch.tensor([both]))).log_softmax(-1)[0]
        expected = sum(float(logits[i - 1, both[i]]) for i in range(len(a), len(both)))
        assert score == pytest.approx(expected, abs=1e-4)
