"""Model Zoo's model names: its GPT and its GPT-J by every name, and every other class refused in one line."""

import pytest

from modelzoo.config.errors import UserError
from modelzoo.config.load import load, resolve
from modelzoo.config.model_names import OTHERS, SAME
from modelzoo.config.trainer import Config
from modelzoo.tasks.convert_config import convert_config

SIZES = (
    "hidden_size: 32, num_heads: 4, num_hidden_layers: 2, filter_size: 64, vocab_size: 99, max_position_embeddings: 8"
)
GPTJ = "position_embedding_type: rotary, rotary_dim: 4, use_bias_in_output: true"  # as params_gptj_6B.yaml has them
TODAY = "trainer:\n  init:\n    model:\n      {{name: {name}, {sizes}{more}}}\n    optimizer: {{AdamW: {{lr: 1e-3}}}}\n"
OLDER = """train_input: {{data_dir: /data/a, batch_size: 8}}
model: {{{sizes}{more}, mixed_precision: true}}
optimizer: {{optimizer_type: AdamW, learning_rate: 1e-3}}
runconfig: {{max_steps: 10}}
"""


def written(folder, text, name="params.yaml"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return str(folder / name)


def refused(path, overrides=()):
    with pytest.raises(UserError) as e:
        load(path, Config, overrides)
    assert "\n" not in str(e.value) and "did you mean" not in str(e.value)
    return str(e.value)


@pytest.mark.parametrize("name", SAME)
def test_names_of_one_class_mean_the_same_model(tmp_path, name):
    keys = ", position_embedding_type: rotary, rotary_dim: 8, norm_type: rmsnorm, nonlinearity: swiglu"
    path = written(tmp_path, TODAY.format(name=name, sizes=SIZES, more=keys))
    same = load(written(tmp_path, TODAY.format(name=SAME[name], sizes=SIZES, more=keys), "same.yaml"), Config)
    assert load(path, Config) == same
    assert any(f":4: trainer.init.model.name: '{name}'" in note.text for note in resolve(path, Config).notes)


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_are_refused_by_name(tmp_path, name):
    more = f", {GPTJ}"
    path = written(tmp_path, TODAY.format(name=name, sizes=SIZES, more=more))
    assert refused(path).startswith(f"{path}:4: trainer.init.model.name: '{name}' is ")
    # what is written over it on the command line does not make it another model
    assert f"'{name}'" in refused(path, ["trainer.init.model.name=gpt3"])
    with pytest.raises(UserError, match=f"'{name}' is "):
        convert_config(path, str(tmp_path / "new.yaml"))
    assert not (tmp_path / "new.yaml").exists()


SIDE_BY_SIDE = ["residual_dropout_rate: 0.0", "use_untied_layer_norm: true"]


@pytest.mark.parametrize("key", SIDE_BY_SIDE)
def test_keys_of_parallel_layers_are_refused_under_another_name(tmp_path, key):
    path = written(tmp_path, TODAY.format(name="gpt3", sizes=SIZES, more=f", {GPTJ}, {key}"))
    message = refused(path)
    assert f"{path}:4: trainer.init.model.{key.partition(':')[0]}: is a key of Model Zoo's gptj" in message
    assert "name here is gpt3" in message


@pytest.mark.parametrize("key", SIDE_BY_SIDE)
def test_an_older_file_without_a_name_is_known_by_its_keys(tmp_path, key):
    path = written(tmp_path, OLDER.format(sizes=SIZES, more=f", {GPTJ}, {key}"))
    model = load(path, Config).trainer.init.model
    assert model.parallel and model.tied_norms == ("norm" not in key) and model.rotary_dim == 4
    assert model.dropout_rate == (0.0 if "dropout" in key else 0.1)
    assert any("no name, so gptj" in note.text for note in resolve(path, Config).notes)


@pytest.mark.parametrize(
    "folder,name",
    [
        ("gptj/configs", "params.yaml"),
        ("falcon/configs", "params.yaml"),
        ("my", "params_gptj_6B.yaml"),
        ("my", "params_gpt_neox_20B.yaml"),
    ],
)
def test_an_older_file_without_a_name_is_known_by_its_path(tmp_path, folder, name):
    text = OLDER.format(sizes=SIZES, more=f", {GPTJ}")
    path = written(tmp_path / folder, text, name)
    assert load(path, Config).trainer.init.model.name == "gptj"
    assert load(path, Config, ["model.name=gpt3"]).trainer.init.model.name == "gpt3"  # a person may know better


def test_an_older_gptj_has_no_mup(tmp_path):
    path = written(tmp_path / "gptj", OLDER.format(sizes=SIZES, more=f", {GPTJ}, output_logits_scale: 0.5"))
    assert "output_logits_scale" in refused(path)


@pytest.mark.parametrize("folder", ["gpt3/configs", "llama/configs", "falcon/gpt3/configs", "falcon/a/b/c"])
def test_an_older_file_elsewhere_is_a_gpt(tmp_path, folder):
    path = written(tmp_path / folder, OLDER.format(sizes=SIZES, more=""))
    assert load(path, Config).trainer.init.model.name == "gpt3"


def test_a_name_in_a_parent_file_is_refused_too(tmp_path):
    written(tmp_path, TODAY.format(name="bert", sizes=SIZES, more=""), "base.yaml")
    path = written(tmp_path, "extends: base.yaml\ntrainer: {init: {seed: 1}}\n", "child.yaml")
    assert "base.yaml:4: trainer.init.model.name: 'bert'" in refused(path)


def test_a_config_json_is_no_config(tmp_path):
    path = written(tmp_path, '{"model_type": "llama", "hidden_size": 32}', "config.json")
    assert f"run.py import {tmp_path} RUN" in refused(path)
