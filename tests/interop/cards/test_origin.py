"""Where an imported model came from is kept in its run, and named by the cards of what began from it."""

import json
import shutil

import pytest

from modelzoo.cli import main
from modelzoo.config.errors import UserError
from modelzoo.interop.cards.origin import FILE, read_origin, trace_origin
from modelzoo.interop.hf.config import choose_family, make_config_json
from modelzoo.interop.hf.tensor_files import write_tensors
from modelzoo.interop.hf.tensors import convert_to_hf, fold_scales
from modelzoo.models.gpt import GPTModel
from tests.interop.words import train_words
from tests.support import tiny

REVISION = "0123456789abcdef0123456789abcdef01234567"


def run(*argv) -> int:
    return main([str(a) for a in argv])


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    """A GPT-2 as the Hub's cache holds it, under models--ORG--NAME/snapshots/REVISION."""
    folder = tmp_path_factory.mktemp("hub") / "models--org--tiny-bio" / "snapshots" / REVISION
    folder.mkdir(parents=True)
    c = tiny(vocab_size=300, max_position_embeddings=16)
    family = choose_family(c)
    (folder / "config.json").write_text(json.dumps(make_config_json(c, family, 0)))
    tensors = convert_to_hf(fold_scales(dict(GPTModel(c).named_parameters()), c), c, family)
    write_tensors(str(folder / "model.safetensors"), {n: x.detach() for n, x in tensors.items()})
    (folder / "tokenizer.json").write_text(train_words())
    return folder


def test_the_folder_says_what_it_says(snapshot, tmp_path):
    assert read_origin(str(snapshot)).name == "org/tiny-bio"
    assert read_origin(str(snapshot)).revision == REVISION
    (tmp_path / "link").symlink_to(snapshot)
    assert read_origin(str(tmp_path / "link")).name == "org/tiny-bio"
    metadata = tmp_path / "local/.cache/huggingface/download/config.json.metadata"
    metadata.parent.mkdir(parents=True)
    for text, revision in ((f"{REVISION}\netag\n1.5\n", REVISION), ("../../etc\n", None), ("", None)):
        metadata.write_text(text)
        found = read_origin(str(tmp_path / "local"))
        assert (found.name, found.revision) == (None, revision)


def test_cards_of_what_began_from_it_name_it(snapshot, tmp_path, capsys):
    assert run("import", snapshot, tmp_path / "run") == 0
    assert f"from org/tiny-bio of the Hugging Face Hub, revision {REVISION}" in capsys.readouterr().out
    (tmp_path / "run/tokenizer.json").unlink()  # another kind in its place: one finder takes whatever is read
    vocab = json.loads(train_words())["model"]
    (tmp_path / "run/vocab.json").write_text(json.dumps(vocab["vocab"]))
    merges = (m if isinstance(m, str) else " ".join(m) for m in vocab["merges"])
    (tmp_path / "run/merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    assert run("prune", tmp_path / "run", tmp_path / "pruned", "--method", "magnitude", "--sparsity", "0.5") == 0
    assert (tmp_path / "pruned/tokenizer.json").exists()
    for folder in ("run", "pruned"):
        assert run("export", tmp_path / folder, tmp_path / f"{folder}_out") == 0
        card = (tmp_path / f"{folder}_out/README.md").read_text()
        assert "\nbase_model: org/tiny-bio\n" in card.split("---")[1]
        assert f"began as those of org/tiny-bio of the Hugging Face Hub, revision {REVISION}, imported by" in card
    assert trace_origin(None) is None and trace_origin(str(tmp_path)) is None
    (tmp_path / "run" / FILE).write_text("[]")
    with pytest.raises(UserError, match=rf"run/{FILE}: "):
        trace_origin(str(tmp_path / "pruned"))


def test_what_is_no_model_is_named(tmp_path, capsys):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text("{}")
    for source, words in (("m.gguf", "is neither a Hugging Face model's folder nor a .mdl"), ("adapter", "lora.path")):
        assert run("import", tmp_path / source, tmp_path / "run") == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1


def test_a_folder_of_runs_names_them(snapshot, tmp_path, capsys):
    assert run("import", snapshot, tmp_path / "tuned/fold_0/seed_1") == 0
    shutil.copytree(tmp_path / "tuned/fold_0/seed_1", tmp_path / "tuned/fold_0/seed_2")
    capsys.readouterr()
    assert run("export", tmp_path / "tuned", tmp_path / "out") == 2
    assert f"it holds 2 runs: {tmp_path}/tuned/fold_0/seed_1 {tmp_path}/tuned/fold_0/seed_2" in capsys.readouterr().err


def test_a_tokenizer_of_another_model_is_named(snapshot, tmp_path, capsys):
    assert run("import", snapshot, tmp_path / "run") == 0
    made = json.loads(train_words())
    vocab = made["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(made))
    for words, named in ((tmp_path / "tokenizer.json", True), (tmp_path / "run/tokenizer.json", False)):
        capsys.readouterr()
        assert run("generate", tmp_path / "run", "--prompt", "a", "--max_new_tokens", 1, "--tokenizer", words) == 0
        assert ("is another tokenizer than" in capsys.readouterr().err) == named
