"""Runs with adapters from the command line: trained, killed and gone on, exported for PEFT, their vectors looked at."""

import json
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from modelzoo.cli import main
from modelzoo.config.errors import UserError
from modelzoo.config.loading.load import load
from modelzoo.config.trainer import Config
from modelzoo.models.adapt import adapt
from modelzoo.models.gpt import GPTModel
from modelzoo.models.soft_prompt import find_nearest
from modelzoo.names import SOFT_PROMPT
from modelzoo.training.build import encode_prompt_words
from modelzoo.training.checkpoints import checkpoint
from tests import commands
from tests.support import config, examples, write_shard

VOCAB, WORDS = 270, "model.embedding_layer.word_embeddings.weight"
CONFIG = """
trainer:
  init:
    model: {hidden_size: 16, num_hidden_layers: 2, num_heads: 2, filter_size: 32, vocab_size: 270,
            max_position_embeddings: 8, dropout_rate: 0.1, attention_dropout_rate: 0.1}
    optimizer: {AdamW: {lr: 0.01}}
    precision: {enabled: false}
    sparsity: {algorithm: rigl, sparsity: 0.75, update: {freq: 2}}
    loop: {max_steps: 4}
    checkpoint: {steps: 1, keep: null}
  fit: {train_dataloader: {data_dir: DATA, batch_size: 4}}
"""
SECTIONS = {
    "base": [],
    "prefix": ["soft_prompt={tokens: 2, place: prefix, init: words, words: fever}"],
    "before": ["soft_prompt={tokens: 2, init: sample_vocab}"],
    "lora": ["lora={r: 2, alpha: 3, target_modules: '*'}"],
    "both": ["soft_prompt={tokens: 2, place: prefix}", "lora={r: 2}"],
}


def run(*argv) -> int:
    return main([str(a) for a in argv])


@pytest.fixture(scope="module")
def words() -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {t: i for i, t in enumerate([*alphabet, "fe", "ve", "feve", "fever", "<|endoftext|>"])}
    merges = [("f", "e"), ("v", "e"), ("fe", "ve"), ("feve", "r")]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return tokenizer.to_str()


def arguments(folder, name, data="train"):
    sets = [a for s in SECTIONS[name] for a in ("--set", f"trainer.init.{s}")]
    return ["CPU", "-p", folder / f"{data}.yaml", "-m", "train", *sets]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, words):
    """A sparse base run, and from its weights one run of each kind of adapter."""
    folder = tmp_path_factory.mktemp("adapters")
    plain = examples(16, vocab=VOCAB)
    prompted = plain.copy()
    prompted[:, 0, 2:4] = (VOCAB, VOCAB + 1)
    for name, data in (("train", plain), ("prompted", prompted)):
        write_shard(folder / f"data/{name}/output_chunk_0_0.h5", data)
        (folder / f"{name}.yaml").write_text(CONFIG.replace("DATA", str(folder / "data" / name)))
    (folder / "data/tokenizer.json").write_text(words)
    assert run(*arguments(folder, "base"), "-o", folder / "base") == 0
    start = ["--checkpoint_path", folder / "base/checkpoints/step_4", "--load_checkpoint_states", "model,sparsity"]
    for name in list(SECTIONS)[1:]:
        data = "train" if name == "lora" else "prompted"
        assert run(*arguments(folder, name, data), *start, "-o", folder / name) == 0
    return folder


def saved(folder, step=4):
    return checkpoint.load(str(folder / f"checkpoints/step_{step}"))[0]["model"]


def ours(folder) -> GPTModel:
    init = load(folder / "config.yaml", Config).trainer.init
    model = adapt(GPTModel(init.model), init, [0])
    model.load_state_dict({n: x for n, x in saved(folder).items() if not n.endswith("_mask")}, strict=False)
    return model.eval()


@pytest.mark.parametrize("name", list(SECTIONS)[1:])
def test_the_base_and_its_masks_stay(trained, name):
    base, found = saved(trained / "base"), saved(trained / name)
    assert any(n.endswith("_mask") for n in base)
    for key, x in base.items():
        assert torch.equal(x, found[key]), key
    moments = load_file(trained / name / "checkpoints/step_4/optimizer.safetensors")
    assert {n.rpartition("/")[0] for n in moments} == found.keys() - base.keys()


def test_a_prompt_of_words_begins_from_the_loaded_rows(trained, tmp_path, words):
    """After one step of lr 0.01 Adam has moved each number by at most 0.01 from the word's row in the checkpoint."""
    fever = saved(trained / "base")[WORDS][json.loads(words)["model"]["vocab"]["fever"]]
    moved = saved(trained / "prefix", step=1)[SOFT_PROMPT][0] - fever
    assert 0 < float(moved.abs().max()) <= 0.0101


@pytest.mark.parametrize("name", list(SECTIONS)[1:])
def test_exports_compute_the_same(trained, tmp_path, name, capsys):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    out = tmp_path / "exported"
    assert run("export", trained / name, out) == 0
    printed = capsys.readouterr().out
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    model, ids = ours(trained / name), torch.randint(0, VOCAB, (3, 6), generator=torch.Generator().manual_seed(0))
    prompt = torch.arange(VOCAB, VOCAB + 2).expand(3, -1)
    with torch.no_grad():
        if name == "before":
            assert "own layout" in printed
            rows = load_file(out / "adapter/soft_prompt.safetensors")["prompt_embeddings"].expand(3, -1, -1)
            embedded = theirs.get_input_embeddings()(ids)
            found = theirs(inputs_embeds=torch.cat((embedded[:, :3], rows, embedded[:, 3:]), 1)).logits
            expected = model.model.logits(model.model.hidden(torch.cat((ids[:, :3], prompt, ids[:, 3:]), 1)))
        else:
            assert "PeftModel.from_pretrained" in printed
            found = peft.PeftModel.from_pretrained(theirs, str(out / "adapter")).eval()(input_ids=ids).logits[:, -6:]
            expected = model.model.hidden(ids if name == "lora" else torch.cat((prompt, ids), 1))
            expected = model.model.logits(expected)[:, -6:]
        assert torch.allclose(found, expected, atol=1e-5)
    assert "## Adapter" in (out / "README.md").read_text()
    masks = load_file(out / "masks.safetensors")
    q, k, v = masks["transformer.h.0.attn.c_attn.weight"].chunk(3, 1)
    assert ("merged" in printed) == (name == "both")
    assert not k.all() and q.all() == v.all() == (name == "both")  # what LoRA was merged into is dense
    assert not run("export", trained / "base", tmp_path / "base") and not (tmp_path / "base/adapter").exists()


def test_zoo_files_have_no_place_for_them(trained, tmp_path, capsys):
    assert run("export", trained / "lora", tmp_path / "x.mdl") == 2
    assert "no such parameter" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_nearest_tokens_equal_numpys(trained, capsys):
    draw = np.random.default_rng(0)
    rows, table = draw.normal(size=(3, 5)), draw.normal(size=(11, 5))
    dot = rows @ table.T
    cosine = dot / np.linalg.norm(rows, axis=1)[:, None] / np.linalg.norm(table, axis=1)
    found = find_nearest(torch.from_numpy(rows), torch.from_numpy(table), 4)
    for mine, values in zip(found, (cosine, dot), strict=True):
        order = np.argsort(-values, axis=1)[:, :4]
        assert [[t for _, t in row] for row in mine] == order.tolist()
        assert np.allclose([[v for v, _ in row] for row in mine], np.take_along_axis(values, order, 1))
    assert run("prompt", trained / "prefix", "--nearest", "2") == 0
    printed = capsys.readouterr().out
    assert "| 0 |" in printed and "| 1 |" in printed and "`fever`" in printed  # it began there, four small steps ago
    assert (
        run("prompt", trained / "prefix", "--nearest", "0") == 2
        and "--nearest: must be above 0, got 0" in capsys.readouterr().err
    )
    assert run("prompt", trained / "base") == 2 and "has no soft prompt" in capsys.readouterr().err


def test_a_killed_run_goes_on_bit_by_bit(trained, tmp_path):
    """SIGKILL in the middle of a run with a prompt and LoRA; the same command ends as the uninterrupted one."""
    start = ["--checkpoint_path", trained / "base/checkpoints/step_4", "--load_checkpoint_states", "model,sparsity"]
    command = [*arguments(trained, "both", "prompted"), "--max_steps", "40"]
    assert run(*command, *start, "-o", tmp_path / "whole") == 0
    child = commands.start([*command, "-o", tmp_path / "killed", *start])
    root = tmp_path / "killed/checkpoints"
    deadline = time.monotonic() + 100
    while not (root / "step_3").exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    commands.kill(child)
    assert 3 <= max(checkpoint.steps(str(root))) < 40
    assert run(*command, "-o", tmp_path / "killed") == 0
    for file in ("model.safetensors", "optimizer.safetensors"):
        whole, killed = (load_file(tmp_path / n / "checkpoints/step_40" / file) for n in ("whole", "killed"))
        assert whole.keys() == killed.keys() and all(torch.equal(x, killed[n]) for n, x in whole.items())


def test_a_resume_demands_what_the_run_has(trained, capsys):
    base = ["--checkpoint_path", trained / "base/checkpoints/step_4"]
    assert run(*arguments(trained, "lora"), *base, "-o", trained / "never") == 2
    assert "--load_checkpoint_states model" in capsys.readouterr().err and not (trained / "never").exists()


def test_ids_beyond_the_prompt_name_file_and_example(trained, capsys):
    one = [*arguments(trained, "base", "prompted"), "--set", "trainer.init.soft_prompt={tokens: 1}"]
    assert run(*one, "-o", trained / "never") == 2
    printed = capsys.readouterr().err
    assert "output_chunk_0_0.h5: example" in printed and "token id 271" in printed and "(1 tokens)" in printed


@pytest.mark.realdata
def test_words_are_read_as_gpt2_reads_them(shared_data):
    """`trainer.init.tokenizer` may be a folder of GPT-2's own files; its ids of `Hello world` are well known."""
    init = {"soft_prompt": {"tokens": 2, "init": "words", "words": "Hello world"}}
    assert encode_prompt_words(config(**init, tokenizer=str(shared_data / "gpt2_bpe"))) == [15496, 995]
    with pytest.raises(UserError, match=r"no tokenizer\.json next to the training data .* .*trainer\.init\.tokenizer"):
        encode_prompt_words(config(**init))
