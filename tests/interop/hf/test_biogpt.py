"""A BioGPT of transformers computes the same logits here, its tokenizer comes along, and what differs is named."""

import json
import math
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from data_preprocessing.tokens import tokenizing
from modelzoo.cli import main
from modelzoo.config.loading.load import load
from modelzoo.config.trainer import Config
from modelzoo.generation.load import load_model
from modelzoo.models.gpt import GPTModel
from modelzoo.training.checkpoints import checkpoint

transformers = pytest.importorskip("transformers")
SIZES = {
    "vocab_size": 290, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40,
    "max_position_embeddings": 16,
}  # fmt: skip


def run(*argv) -> int:
    return main([str(a) for a in argv])


def make(folder, **config):
    """A BioGPT in `folder`, with every weight far from its initial value, and a tokenizer of 280 ids."""
    torch.manual_seed(0)
    theirs = transformers.BioGptForCausalLM(transformers.BioGptConfig(**{**SIZES, **config})).eval()
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            p.normal_(1.0 if "norm.weight" in name else 0.0, 0.3)
    theirs.save_pretrained(folder)
    words = tokenizing.train(iter([["aspirin lowers fever, fever lowers appetite"] * 5]), 280, ["<s>", "<pad>", "</s>"])
    (folder / "tokenizer.json").write_text(words)
    return theirs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    at = tmp_path_factory.mktemp("biogpt")
    make(at)
    return at


@pytest.mark.parametrize(
    "config",
    [{}, {"hidden_size": 16, "num_attention_heads": 2}, {"scale_embedding": False}, {"tie_word_embeddings": False},
     {"hidden_act": "relu"}, {"hidden_act": "gelu_fast"}],
)  # fmt: skip
@torch.no_grad()
def test_logits_equal_and_go_out_again(tmp_path, config, capsys):
    theirs = make(tmp_path / "in", **config)
    assert run("import", tmp_path / "in", tmp_path / "run") == 0
    c = load(str(tmp_path / "run/config.yaml"), Config).trainer.init.model
    model = GPTModel(c).eval()
    model.load_state_dict(checkpoint.load(str(tmp_path / "run/checkpoints/step_0"))[0]["model"], strict=False)
    ids = torch.randint(0, c.vocab_size, (3, 16), generator=torch.Generator().manual_seed(1))
    expected = theirs(ids).logits
    found = model.model.logits(model.model.hidden(ids))
    assert expected.std() > 0.1
    tolerance = {"rtol": 1e-5, "atol": 1e-5 * max(1.0, expected.abs().max().item())}
    torch.testing.assert_close(found, expected, **tolerance)
    assert run("export", tmp_path / "run", tmp_path / "out") == 0  # as a GPT-2, with the imported tokenizer
    out = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="float32").eval()
    torch.testing.assert_close(out(ids).logits, expected, **tolerance)
    assert (tmp_path / "out/tokenizer.json").read_text() == (tmp_path / "in/tokenizer.json").read_text()
    told = capsys.readouterr().out
    assert "weights of a BioGPT" in told and "the tokenizer has 280 ids, the model 290 rows" in told


def test_the_scale_of_microsofts_size_is_exact():
    assert math.sqrt(1024) == 32  # a power of two: positions are divided without a rounding


def test_the_imported_run_writes(folder, tmp_path, capsys):
    assert run("import", folder, tmp_path / "run") == 0
    loaded = load_model(str(tmp_path / "run"))
    assert loaded.tokenizer.eos == 2 and loaded.tokenizer.size == 280
    assert run("generate", tmp_path / "run", "--prompt", "aspirin", "--max_new_tokens", 4) == 0
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    "change,message",
    [
        ({"num_attention_heads": 5}, r"config\.json: num_heads 5 must divide"),
        ({"hidden_act": "mish"}, r"config\.json: hidden_act: "),
        ({"hidden_size": "24"}, r"config\.json: hidden_size: "),
        ({"num_hidden_layers": 3}, r"its config asks for model\.transformer_decoder\.layers\.2.* hold nothing"),
        ({"num_hidden_layers": 1}, r"biogpt\.layers\.1.*: is no tensor of a BioGPT with these sizes"),
        ({"max_position_embeddings": 2**20}, r"its config asks for .*position_embeddings.*\[1048578, 24\]"),
        ({"intermediate_size": 41}, r"its config asks for .*\[41, 24\], the weights hold \[40, 24\]"),
        ({"vocab_size": 279}, r"has token ids up to 279, the model's vocabulary is 279; this is not its tokenizer"),
    ],
)
def test_a_config_that_lies_is_refused_in_one_line(folder, tmp_path, capsys, change, message):
    shutil.copytree(folder, tmp_path / "in")
    config = {**json.loads((folder / "config.json").read_text()), **change}
    (tmp_path / "in/config.json").write_text(json.dumps(config))
    assert run("import", tmp_path / "in", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_a_shard_that_lacks_is_named_once(folder, tmp_path, capsys):
    shutil.copytree(folder, tmp_path / "in")
    (tmp_path / "in/model.safetensors").unlink()
    index = {"weight_map": dict.fromkeys(load_file(folder / "model.safetensors"), "model-1.safetensors")}
    (tmp_path / "in/model.safetensors.index.json").write_text(json.dumps(index))
    assert run("import", tmp_path / "in", tmp_path / "run") == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/in/model-1.safetensors: missing\n"
    assert not (tmp_path / "run").exists()


def test_weights_that_do_not_fit_are_refused(folder, tmp_path, capsys):
    shutil.copytree(folder, tmp_path / "in")
    weights = load_file(folder / "model.safetensors")
    for tensors, message in (
        ({**weights, "output_projection.weight": torch.zeros(290, 24)}, "yet the config ties them"),
        ({**weights, "biogpt.extra.weight": torch.zeros(2)}, "biogpt.extra.weight: is no tensor of a BioGPT"),
        ({n: x for n, x in weights.items() if "fc1.bias" not in n}, "linear_layer.bias"),
    ):
        save_file(tensors, tmp_path / "in/model.safetensors")
        assert run("import", tmp_path / "in", tmp_path / "run") == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1 and not (tmp_path / "run").exists()


def test_names_of_the_hub_and_parts_of_a_folder(folder, tmp_path, capsys):
    for name, command in (
        ("EleutherAI/pythia-160m", "hf download EleutherAI/pythia-160m --include '*.json' --include '*.safetensors'"),
        ("gpt2-medium", "hf download openai-community/gpt2-medium "),
        ("microsoft/biogpt", "--local-dir biogpt (pip install huggingface_hub), and name biogpt"),
        (folder / "model.safetensors", f"name its folder: {folder}"),
        (tmp_path / "nothing", "no such file or folder; wanted is a Hugging Face model's folder, or a .mdl"),
    ):
        assert run("import", name, tmp_path / "run") == 2
        error = capsys.readouterr().err
        assert command in error and error.count("\n") == 1 and not (tmp_path / "run").exists()


CONFIG = """trainer:
  init:
    seed: 3
    model: {hidden_size: 8}
    optimizer: {AdamW: {lr: 0.01}}
    sparsity:
      - {sparsity: 0.75, param_filter: '*proj_*weight'}
      - {sparsity: 0.5, init_method: topk, param_filter: '*linear_layer.weight'}
    loop: {max_steps: 1}
"""


def test_a_sparse_config_says_what_its_masks_throw_away(folder, tmp_path, capsys):
    (tmp_path / "s.yaml").write_text(CONFIG)
    assert run("import", folder, tmp_path / "run", "-p", tmp_path / "s.yaml") == 0
    printed = capsys.readouterr().out
    random, topk = (line for line in printed.splitlines() if line.startswith("masks"))
    command = printed.split("masks by calibration text: python run.py ")[1].split("--data")[0].split()
    assert command[:2] == ["prune", str(tmp_path / "run")]
    assert run(*command[:2], tmp_path / "pruned", "--method", "magnitude") == 0  # to the config's own sparsity
    assert "75.00 %" in (text := capsys.readouterr().out) and "50.00 %" in text
    weights = load_file(folder / "model.safetensors")
    attention = torch.cat([x.flatten() for n, x in weights.items() if "_proj.weight" in n]).double().square()
    forward = [x.flatten().double().square() for n, x in weights.items() if "fc" in n and n.endswith("weight")]
    smallest = sum(float(x.sort()[0][: len(x) // 2].sum()) for x in forward)
    smallest *= 100 / sum(float(x.sum()) for x in forward)
    assert f"{len(attention) // 4:,} of {len(attention):,} weights stay (25.0 %)" in random
    lost = float(random.split("(25.0 %), and ")[1].split(" %")[0])
    assert abs(lost - 75) < 5 and "(init_method: topk:" in random  # at random, about as much as weights
    assert f"stay (50.0 %), and {smallest:.1f} % of their squared norm is thrown away" in topk
    (tmp_path / "bad.yaml").write_text(CONFIG.replace("0.75,", "0.75, block: [5, 1],"))
    assert run("import", folder, tmp_path / "other", "-p", tmp_path / "bad.yaml") == 2
    error = capsys.readouterr().err
    assert "sparsity does not fit this model" in error and not (tmp_path / "other").exists()
