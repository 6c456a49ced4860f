"""Old spellings: every way to write one means what today's spelling means, and is reported with its line."""

import pytest

from modelzoo.config.errors import UserError
from modelzoo.config.loading.load import dump, load, resolve
from modelzoo.config.sections.finetune import Finetune
from modelzoo.config.sections.sparsity import SparsityGroup
from modelzoo.config.trainer import Config

HEAD = "trainer:\n  init:\n    model: {hidden_size: 8, num_heads: 2, num_hidden_layers: 1, filter_size: 16}\n"
FINETUNE = HEAD + "  finetune:\n    task: t.yaml\n    "
MASKS = {
    "none": "lift",
    "keep": "keep",
    "null": "null",
    "{gradual: {steps: 7, freq: 3}}": "{open: {steps: 7, freq: 3}}",
    "{steps: 7, freq: 3}": "{open: {steps: 7, freq: 3}}",  # as older runs dumped it
}


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        return name

    return write


@pytest.mark.parametrize("old,new", MASKS.items())
def test_masks_in_a_file(write, old, new):
    config = load(write("old.yaml", FINETUNE + f"sparsity: {old}\n"), Config)
    assert config == load(write("new.yaml", FINETUNE + f"masks: {new}\n"), Config)
    dumped = dump(config)
    assert "masks:" in dumped and "gradual" not in dumped
    assert load(write("dumped.yaml", dumped), Config) == config and not resolve("dumped.yaml", Config).notes
    notes = [n.text for n in resolve("old.yaml", Config).notes]
    said = [] if new == "null" else ["old.yaml:6: trainer.finetune.sparsity: now written `masks: "]
    assert len(notes) == len(said) and all(a.startswith(b) for a, b in zip(notes, said, strict=True))
    assert not resolve("new.yaml", Config).notes


@pytest.mark.parametrize("text,new", [("sparsity: {storage: dense, sparsity: 0.5}", "masked"),
                                      ("sparsity: [{storage: dense, sparsity: 0.5}]", "masked"),
                                      ("sparsity: {groups: {sparsity: 0.5, params: {storage: dense}}}", "masked"),
                                      ("sparsity: {storage: packed, sparsity: 0.5}", "packed")])  # fmt: skip
def test_storage_in_a_file(write, text, new):
    path = write("a.yaml", HEAD + f"    {text}\n")
    assert load(path, Config).trainer.init.sparsity[0].storage == new
    notes = [n.text for n in resolve(path, Config).notes]
    assert len(notes) == (new == "masked")
    assert all(n.startswith("a.yaml:4: ") and n.endswith("storage: now written `storage: masked`") for n in notes)


def test_plain_data_of_old_checkpoints():
    assert SparsityGroup.model_validate({"sparsity": 0.5, "storage": "dense"}).storage == "masked"
    assert Finetune(task="t", sparsity={"gradual": {"steps": 3}}) == Finetune(task="t", masks={"open": {"steps": 3}})


@pytest.mark.parametrize("child", ["sparsity: keep", "masks: keep"])
@pytest.mark.parametrize("parent", ["sparsity: none", "masks: lift", "sparsity: {gradual: {steps: 5}}"])
def test_a_child_wins_whatever_either_calls_it(write, parent, child):
    write("base.yaml", FINETUNE + f"{parent}\n")
    write("child.yaml", f"extends: base.yaml\ntrainer: {{finetune: {{{child}}}}}\n")
    assert load("child.yaml", Config).trainer.finetune.masks == "keep"
    assert load("base.yaml", Config, [f"trainer.finetune.{child.replace(': ', '=')}"]).trainer.finetune.masks == "keep"


def test_an_old_path_reaches_into_todays_section(write):
    path = write("a.yaml", FINETUNE + "masks: {open: {steps: 9, freq: 3}}\n")
    override = "trainer.finetune.sparsity.gradual.steps=20"
    opening = load(path, Config, [override]).trainer.finetune.masks.open
    assert (opening.steps, opening.freq) == (20, 3)
    (note,) = resolve(path, Config, [override]).notes
    assert note.text.startswith(f"--set {override}: ")


def test_both_names_in_one_file_are_refused(write):
    with pytest.raises(UserError, match=r"a.yaml:4: trainer.finetune: `sparsity` is the old name of `masks`"):
        load(write("a.yaml", FINETUNE + "sparsity: none\n    masks: keep\n"), Config)


def test_a_wrong_value_under_an_old_name_names_its_line(write):
    with pytest.raises(UserError, match=r"a.yaml:6: trainer.finetune.masks: takes lift, keep, or \{open"):
        load(write("a.yaml", FINETUNE + "sparsity: drop\n"), Config)
    with pytest.raises(UserError, match=r"a.yaml:6: .*open needs its length"):
        load(write("a.yaml", FINETUNE + "sparsity: gradual\n"), Config)
