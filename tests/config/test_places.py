"""An error about a path names the key and line that gave it."""

import errno

import pytest

from modelzoo import cli
from modelzoo.config.errors import UserError
from modelzoo.config.loading import yaml12
from modelzoo.config.loading.places import naming_places

DOC = yaml12.parse("a:\n  data_dir: [x/one, x/one/two]\n  name: x\nb: ''\nc: error\n", "f.yaml")


@pytest.mark.parametrize("text,place", [
    ("x/one: no such folder", " (a.data_dir.0, f.yaml:2)"),
    ("x/one/three/0.h5: damaged", " (a.data_dir.0, f.yaml:2)"),
    ("x/one/two/0.h5: damaged", " (a.data_dir.1, f.yaml:2)"),
    ("x/onetwo: no such folder", " (a.name, f.yaml:3)"),
    ("xy: no such folder", ""),
    ("y/x: no such folder", ""),
    ("x/one: a.data_dir.0 is wrong", ""),
    ("x/one: see f.yaml:2", ""),
    ("errors: 3", ""),
    ("", ""),
])  # fmt: skip
def test_the_longest_path_that_begins_the_line_is_named(text, place):
    with pytest.raises(UserError) as e, naming_places(DOC):
        raise UserError(f"first\n{text}" if text else "first")
    assert str(e.value) == (f"first\n{text}{place}" if text else "first")


def test_a_choice_that_is_spelt_like_the_folder_is_not_named():
    doc = yaml12.parse("fit: {loader: {data_dir: none}}\ninit: {activation_checkpointing: none}\n", "f.yaml")
    with pytest.raises(UserError) as e, naming_places(doc):
        raise UserError("none: no such data folder")
    assert str(e.value).endswith("(fit.loader.data_dir, f.yaml:1)")


@pytest.mark.parametrize("text,place", [
    ("x/one: holds no checkpoint", " (--checkpoint_path)"),
    ("x/one/a: damaged", " (--checkpoint_path)"),
    ("x/one/two/0.h5: damaged", " (a.data_dir.1, f.yaml:2)"),
    ("x/one: give another --checkpoint_path", ""),
    ("run: busy", ""),
])  # fmt: skip
def test_a_flag_of_the_same_value_is_named_and_not_the_key(text, place):
    with (
        pytest.raises(UserError) as e,
        naming_places(DOC, {"--checkpoint_path": "x/one", "-o": "run", "--data_dir": None}),
    ):
        raise UserError(text)
    assert str(e.value) == text + place


def test_the_class_and_code_of_an_error_stay():
    class Busy(UserError):
        exit_code = 75

    with pytest.raises(Busy) as e, naming_places(DOC):
        raise Busy("x/one: busy")
    assert e.value.exit_code == 75 and str(e.value).endswith("(a.data_dir.0, f.yaml:2)")


def test_an_error_of_the_system_has_its_place_too():
    with pytest.raises(OSError) as e, naming_places(DOC):
        raise OSError(errno.EACCES, "Permission denied", "x/one/two")
    assert e.value.strerror == "Permission denied (a.data_dir.1, f.yaml:2)" and e.value.errno == errno.EACCES
    with pytest.raises(OSError) as e, naming_places(DOC):
        raise OSError(errno.EACCES, "Permission denied", 3)
    assert e.value.strerror == "Permission denied"


def test_a_folder_that_is_not_there_is_named_with_its_line(tmp_path, capsys):
    text = "extends: quickstart/s75.yaml\ntrainer:\n  fit:\n    train_dataloader:\n      data_dir: nowhere/train\n"
    path = tmp_path / "a.yaml"
    path.write_text(text, encoding="utf-8")
    assert cli.main(["CPU", "-p", str(path), "-m", "train", "-o", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert f"trainer.fit.train_dataloader.data_dir, {path}:5)" in err


def test_a_refused_key_has_its_file_and_line():
    doc = yaml12.parse("trainer:\n  init:\n    loop: {max_steps: 0}\n", "f.yaml")
    doc.marks["trainer", "init", "seed"] = yaml12.Mark("--set trainer.init.seed=1")
    for text, place in (
        ("trainer.init.loop: give max_steps", " (f.yaml:3)"),
        ("trainer.init.sparsity.0.nm: 4 does not divide", " (f.yaml:2)"),  # of the nearest that is written down
        ("trainer.init.seed: no", " (--set trainer.init.seed=1)"),
        ("f.yaml:3: trainer.init.loop: no", ""),
    ):
        with pytest.raises(UserError) as e, naming_places(doc):
            raise UserError(text)
        assert str(e.value) == text + place
