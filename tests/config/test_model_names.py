"""Model Zoo's model names: its one GPT class under every name of it, and every other class refused in one line."""

import pytest

from modelzoo.config.errors import UserError
from modelzoo.config.legacy.model_names import OTHERS, SAME
from modelzoo.config.loading.load import load, resolve
from modelzoo.config.sections.model import GPTConfig, find_difference
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
def test_names_of_a_class_mean_the_same_model(tmp_path, name):
    keys = ", position_embedding_type: rotary, rotary_dim: 8, norm_type: rmsnorm, nonlinearity: swiglu"
    path = written(tmp_path, TODAY.format(name=name, sizes=SIZES, more=keys))
    same = load(written(tmp_path, TODAY.format(name=SAME[name], sizes=SIZES, more=keys), "same.yaml"), Config)
    assert load(path, Config) == same
    assert any(f":4: trainer.init.model.name: '{name}'" in note.text for note in resolve(path, Config).notes)


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_are_refused_by_name(tmp_path, name):
    path = written(tmp_path, TODAY.format(name=name, sizes=SIZES, more=", encoder_nonlinearity: gelu"))
    assert refused(path).startswith(f"{path}:4: trainer.init.model.name: '{name}' is ")
    # what is written over it on the command line does not make it another model
    assert f"'{name}'" in refused(path, ["trainer.init.model.name=gpt3"])
    with pytest.raises(UserError, match=f"'{name}' is "):
        convert_config(path, str(tmp_path / "new.yaml"))
    assert not (tmp_path / "new.yaml").exists()


@pytest.mark.parametrize("key", ["encoder_num_hidden_layers: 2", "encoder_nonlinearity: gelu", "image_model: {}"])
@pytest.mark.parametrize("text", [TODAY, OLDER])
def test_keys_of_other_models_are_refused_for_what_they_are(tmp_path, text, key):
    path = written(tmp_path, text.format(name="gpt3", sizes=SIZES, more=f", {key}"))
    assert f"model.{key.partition(':')[0]}: is a key of Model Zoo's " in refused(path)


def test_the_norm_of_parallel_layers_is_refused_under_another_name(tmp_path):
    path = written(tmp_path, TODAY.format(name="gpt3", sizes=SIZES, more=f", {GPTJ}, use_untied_layer_norm: true"))
    message = refused(path)
    assert f"{path}:4: trainer.init.model.use_untied_layer_norm: is a key of Model Zoo's gptj" in message
    assert "name here is gpt3" in message


def test_gptj_stays_gptj_through_every_dialect(tmp_path):
    """Its layers are parallel: read as a GPT-3, such a file gives another model."""
    today = load(written(tmp_path, TODAY.format(name="gptj", sizes=SIZES, more=f", {GPTJ}")), Config)
    assert today.trainer.init.model.parallel
    for more in ("residual_dropout_rate: 0.1", "residual_dropout_rate: 0.1, dropout_rate: 0.1"):
        path = written(tmp_path, OLDER.format(sizes=SIZES, more=f", {GPTJ}, {more}"), "a.yaml")
        old = load(path, Config).trainer.init.model
        assert old.parallel and old.dropout_rate == 0.1 and old.position_embedding_type == "rotary"
        assert any("so gptj by its residual_dropout_rate" in note.text for note in resolve(path, Config).notes)
        convert_config(path, str(tmp_path / "new.yaml"), force=True)
        assert load(str(tmp_path / "new.yaml"), Config).trainer.init.model == old
    path = written(
        tmp_path, OLDER.format(sizes=SIZES, more=", residual_dropout_rate: 0.1, dropout_rate: 0.2"), "b.yaml"
    )
    with pytest.raises(UserError, match="give one of them"):
        load(path, Config)
    neox = written(tmp_path, OLDER.format(sizes=SIZES, more=", use_untied_layer_norm: true"), "c.yaml")
    model = load(neox, Config).trainer.init.model
    assert model.parallel and not model.tied_norms


@pytest.mark.parametrize(
    "folder,name",
    [
        ("gptj/configs", "p.yaml"),
        ("falcon/configs", "p.yaml"),
        ("my", "params_gptj_6B.yaml"),
        ("a", "gpt_neox_20B.yaml"),
    ],
)
def test_an_older_file_without_a_name_is_known_by_its_path(tmp_path, folder, name):
    path = written(tmp_path / folder, OLDER.format(sizes=SIZES, more=f", {GPTJ}"), name)
    assert load(path, Config).trainer.init.model.name == "gptj"
    assert any("so gptj by its path" in note.text for note in resolve(path, Config).notes)
    assert load(path, Config, ["model.name=gpt3"]).trainer.init.model.name == "gpt3"  # a person may know better


@pytest.mark.parametrize("folder", ["gpt3/configs", "llama/configs", "falcon/gpt3/configs", "falcon/a/b/c"])
def test_an_older_file_elsewhere_is_a_gpt(tmp_path, folder):
    path = written(tmp_path / folder, OLDER.format(sizes=SIZES, more=""))
    assert load(path, Config).trainer.init.model.name == "gpt3"


def test_a_name_in_a_parent_file_is_refused_too(tmp_path):
    written(tmp_path, TODAY.format(name="t5", sizes=SIZES, more=""), "base.yaml")
    path = written(tmp_path, "extends: base.yaml\ntrainer: {init: {seed: 1}}\n", "child.yaml")
    assert "base.yaml:4: trainer.init.model.name: 't5'" in refused(path)


ROTARY = {"position_embedding_type": "rotary", "scale_qk_dot_by_d": False, "embd_pdrop": 0.1, "hidden_size": 96}


@pytest.mark.parametrize(
    "saved,ours,key",
    [
        ({"name": "gptj", "use_untied_layer_norm": True}, {"name": "gpt3"}, "name"),
        ({"name": "gptj"}, {"name": "gptj", "use_untied_layer_norm": True}, "use_untied_layer_norm"),
        ({"pos_scaling_type": "llama3", "pos_scaling_factor": 8.0}, {"pos_scaling_factor": 8.0}, "pos_scaling_type"),
        ({"num_heads": 6}, {"num_heads": 12}, "num_heads"),
        ({"name": "gpt2", "dropout_rate": 0.2}, {"name": "gpt3"}, None),
        ({}, {"initializer": {"name": "normal", "std": 0.1}}, None),
    ],
)
def test_what_computes_something_else_is_found_both_ways(saved, ours, key):
    """Keys of later architectures are not written where idle, and count all the same."""
    a, b = (GPTConfig.model_validate({**ROTARY, "use_ffn_bias": True, **fields}) for fields in (saved, ours))
    for first, second in ((a, b), (b, a)):
        found = find_difference(first.model_dump(mode="json"), second)
        assert (found and found[0]) == key
    assert find_difference({}, GPTConfig()) is None  # what an older file does not name is as it was


def test_optimizers_are_known_without_their_capitals(tmp_path):
    """As Model Zoo's own files of 2.10 write them."""
    text = TODAY.format(name="gpt3", sizes=SIZES, more="")
    path = written(tmp_path, text.replace("AdamW: {lr: 1e-3}", "adamw: {lr: 1e-3, eps: 0}"))
    with pytest.raises(UserError, match=r":5: trainer\.init\.optimizer\.AdamW\.eps: "):  # the line stays known
        load(path, Config)
    path = written(tmp_path, text.replace("AdamW", "adamw"))
    assert load(path, Config) == load(written(tmp_path, text, "same.yaml"), Config)


def test_a_config_json_is_no_config(tmp_path):
    path = written(tmp_path, '{"model_type": "llama", "hidden_size": 32}', "config.json")
    assert f"run.py import {tmp_path} RUN" in refused(path)
