"""Older Model Zoo dialects mean what today's format says by other keys; what cannot be honoured is refused by line."""

import math
import re
import subprocess

import pytest
import yaml

from modelzoo.config.errors import UserError
from modelzoo.config.loading import yaml12
from modelzoo.config.loading.load import load, resolve
from modelzoo.config.trainer import Config
from modelzoo.models.shapes import list_parameters
from modelzoo.optim.groups import lr_scale
from modelzoo.sparsity.select import select_parameters

TODAY = """
trainer:
  init:
    model: {name: gpt3, hidden_size: 32, num_heads: 4, num_hidden_layers: 2, filter_size: 64, vocab_size: 100,
            max_position_embeddings: 16, dropout_rate: 0.2, attention_dropout_rate: 0.2,
            attention_type: scaled_dot_product, loss_scaling: batch_size, loss_weight: 0.0625}
    optimizer: {AdamW: {betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.1, correct_bias: true}}
    schedulers:
      - SequentialLR:
          schedulers:
            - LinearLR: {initial_learning_rate: 0.0, end_learning_rate: 6e-4, total_iters: 3}
            - CosineDecayLR: {initial_learning_rate: 6e-4, end_learning_rate: 6e-5, total_iters: 7}
    precision: {enabled: true, fp16_type: bfloat16, max_gradient_norm: 1.0, precision_opt_level: 1}
    loop: {max_steps: 10, eval_steps: 2}
    checkpoint: {steps: 5, save_initial_checkpoint: false, keep: 4}
    logging: {log_steps: 2}
    seed: 7
  fit:
    train_dataloader: {data_processor: GptHDF5DataProcessor, data_dir: [/data/a, /data/b], batch_size: 8, shuffle: true,
                       shuffle_seed: 1337, num_workers: 1}
    val_dataloader: {data_processor: GptHDF5MapDataProcessor, data_dir: /data/v, batch_size: 8, shuffle: false}
"""
INPUTS = """
train_input: {data_processor: GptHDF5DataProcessor, data_dir: [/data/a, /data/b], batch_size: 8, shuffle: True,
              shuffle_seed: 1337, num_workers: 1}
eval_input: {data_processor: GptHDF5MapDataProcessor, data_dir: /data/v, batch_size: 8, shuffle: False}
"""
SIZES = """hidden_size: 32, num_heads: 4, num_hidden_layers: 2, filter_size: 64, vocab_size: 100,
        max_position_embeddings: 16, dropout_rate: 0.2, attention_type: scaled_dot_product, loss_scaling: batch_size,
        loss_weight: 0.0625"""
R22 = f"""{INPUTS}
model: {{{SIZES}, attention_dropout_rate: 0.2, mixed_precision: True, fp16_type: bfloat16}}
optimizer:
  optimizer_type: AdamW
  betas: [0.9, 0.95]
  eps: 1.0e-8
  weight_decay: 0.1
  correct_bias: True
  max_gradient_norm: 1.0
  log_summaries: True
  learning_rate:
    - {{scheduler: Linear, initial_learning_rate: 0.0, end_learning_rate: 6e-4, total_iters: 3}}
    - {{scheduler: CosineDecay, initial_learning_rate: 6e-4, end_learning_rate: 6e-5, total_iters: 7}}
runconfig: {{max_steps: 10, eval_steps: 2, checkpoint_steps: 5, max_checkpoints: 4, log_steps: 2, seed: 7,
            save_initial_checkpoint: False, precision_opt_level: 1, enable_distributed: False}}
"""
R19 = f"""{INPUTS}
model: {{{SIZES}, attention_dropout_rate: 0.2, mixed_precision: True, use_bfloat16: True, use_position_embedding: True}}
optimizer:
  optimizer_type: adamw
  beta1: 0.9
  beta2: 0.95
  epsilon: 1.0e-8
  weight_decay_rate: 0.1
  use_bias_correction: True
  max_gradient_norm: 1.0
  learning_rate:
    - {{scheduler: Linear, initial_learning_rate: 0.0, end_learning_rate: 6e-4, steps: 3}}
    - {{scheduler: CosineDecay, initial_learning_rate: 6e-4, end_learning_rate: 6e-5, steps: 7}}
runconfig: {{max_steps: 10, eval_steps: 2, checkpoint_steps: 5, keep_checkpoint_max: 4, log_steps: 2, seed: 7,
            save_initial_checkpoint: False, precision_opt_level: 1, use_appliance_data: True, save_losses: True}}
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "old.yaml") -> str:
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


@pytest.mark.parametrize("older", [R22, R19], ids=["2.2", "1.9"])
def test_older_files_mean_what_todays_says(write, older):
    assert load(write(older), Config) == load(write(TODAY, "today.yaml"), Config)


@pytest.mark.parametrize(
    "older,today",
    [
        ("sparsity: 0.5", "0.5"),
        ("sparsity: {algorithm: gmp, schedule: {type: linear, init: 0.1, slope: 0.1, final: 0.5}, update: {freq: 2}}",
         "{algorithm: gmp, sparsity: {type: linear, init: 0.1, slope: 0.1, final: 0.5}, update: {freq: 2}}"),
        ("sparsity: {type: rigl, sparsity: 0.75, drop_fraction: 0.3, schedule: {freq: 100, stop: 900}}",
         "{algorithm: rigl, sparsity: 0.75, drop_fraction: 0.3, update: {freq: 100, stop: 900}}"),
        ("sparsity: {type: set, sparsity: 0.75, schedule: [3, 9]}",
         "{algorithm: set, sparsity: 0.75, update: {steps: [3, 9]}}"),
        ("sparsity: {type: static, sparsity: 0.5, init_method: topk, add_summaries: True}",
         "{algorithm: static, sparsity: 0.5, init_method: topk}"),
        ("sparsity: [{sparsity: 0.5, param_filter: '*ffn*weight'}, {sparsity: 0.25}]",
         "[{sparsity: 0.5, param_filter: ['*ffn*weight']}, {sparsity: 0.25}]"),
    ],
)  # fmt: skip
def test_sparsity_of_older_releases(write, older, today):
    expected = TODAY.replace("    loop:", f"    sparsity: {today}\n    loop:")
    assert load(write(R22 + older), Config) == load(write(expected, "today.yaml"), Config)


@pytest.mark.parametrize(
    "patterns",
    [
        "['.*proj_[qkv]_dense_layer.weight', '.*proj_output_dense_layer.weight', '.*linear_layer.weight']",
        r"'(proj_(q|k|v|output)_dense_layer|linear_layer)\.weight$'",
    ],
)
def test_regular_expressions_choose_the_same_weights(write, patterns):
    config = load(
        write(f"{R19}sparsity: {{sparsity: 0.5, init_method: random, param_name_patterns: {patterns}}}"), Config
    )
    shapes = list_parameters(config.trainer.init.model)
    linear = [n for n, s in shapes.items() if s.kind == "linear"]
    assert select_parameters(shapes, config.trainer.init.sparsity) == [linear]


def test_a_dict_of_patterns_becomes_groups(write):
    text = (
        "sparsity: {sparsity: 0.5, init_method: topk, seed: 3, param_name_patterns: {attn: {sparsity: 0.25}, ffn: {}}}"
    )
    config = load(write(R19 + text), Config)
    attention, ffn = config.trainer.init.sparsity
    assert (attention.sparsity.value, ffn.sparsity.value) == (0.25, 0.5)
    assert attention.init_method == ffn.init_method == "topk" and attention.seed == ffn.seed == 3
    names = select_parameters(list_parameters(config.trainer.init.model), config.trainer.init.sparsity)
    assert all("attn" in n for n in names[0]) and all("ffn" in n for n in names[1]) and len(names[0]) == 8


def test_former_mup_keeps_logits_rates_and_spreads(write):
    """Release 2.2's 111M muP numbers, scaled down: width 3, so 1/3 of the logits and of the decoder's learning rate."""
    std, depth = 0.08, 4**-0.5
    text = R22.replace("hidden_size: 32, num_heads: 4", "hidden_size: 96, num_heads: 4").replace(
        "filter_size: 64", "filter_size: 384"
    )
    text = text.replace(
        "mixed_precision: True",
        f"initializer: {{name: truncated_normal, std: {std / math.sqrt(3)!r}}}, output_logits_scale: {1 / 3!r}, "
        f"output_layer_initializer: {{name: truncated_normal, std: {std * depth / math.sqrt(3)!r}}}, "
        "scale_qk_dot_by_d: True, embeddings_scale: 10, mixed_precision: True",
    ).replace("  log_summaries: True", f"  adjust_learning_rate: {{decoder_kernel: {1 / 3!r}}}")
    m = load(write(text), Config).trainer.init.model
    assert (m.mup_base_hidden_size, m.mup_base_filter_size) == (32, 128)
    assert m.output_logits_alpha / (m.hidden_size / m.mup_base_hidden_size) == pytest.approx(1 / 3, rel=1e-12)
    assert m.initializer.std == pytest.approx(std) and m.output_layer_initializer.std == pytest.approx(std)
    assert m.ffn_output_layer_initializer == m.output_layer_initializer
    assert m.scale_qk_dot_by_d and m.embeddings_scale == 10
    for name, shape in list_parameters(m).items():
        kernel = shape.kind == "linear"
        assert lr_scale(name, m) == pytest.approx(1 / 3 if kernel else 1.0), name


def test_another_decoder_rate_than_mups_stays(write):
    text = R22.replace("mixed_precision", "output_logits_scale: 0.5, mixed_precision").replace(
        "  log_summaries: True", "  adjust_learning_rate: {decoder_kernel: 0.125}"
    )
    m = load(write(text), Config).trainer.init.model
    for name, shape in list_parameters(m).items():
        assert lr_scale(name, m) == pytest.approx(0.125 if shape.kind == "linear" else 1.0), name


def test_no_mixed_precision_means_float32(write):
    config = load(write(R22.replace(", mixed_precision: True, fp16_type: bfloat16", "")), Config)
    assert config.trainer.init.precision.enabled is False


def test_a_scalar_learning_rate_is_constant(write):
    text = re.sub(r"  learning_rate:\n.*\n.*\n", "  learning_rate: 2e-4\n", R22)
    (scheduler,) = load(write(text), Config).trainer.init.schedulers
    assert scheduler.name == "ConstantLR" and scheduler.value.learning_rate == 2e-4


def test_overrides_speak_either_dialect(write):
    path = write(R22)
    config = load(path, Config, ["runconfig.max_steps=3", "trainer.init.model.name=gpt2", "trainer.init.seed=9"])
    init = config.trainer.init
    assert (init.loop.max_steps, init.model.name, init.seed) == (3, "gpt2", 9)


def test_the_folder_names_the_model(tmp_path):
    for folder, name in (("gpt2", "gpt2"), ("gpt3", "gpt3"), ("other", "gpt3")):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "params.yaml"
        path.write_text(R22)
        assert load(path, Config).trainer.init.model.name == name


def test_todays_file_extends_an_older_one(write):
    write(R22)
    child = write("extends: old.yaml\ntrainer: {init: {loop: {max_steps: 4}}}", "child.yaml")
    assert load(child, Config).trainer.init.loop.max_steps == 4
    older = write("extends: old.yaml\nrunconfig: {max_steps: 5}", "older.yaml")
    assert load(older, Config).trainer.init.loop.max_steps == 5
    assert load(older, Config).trainer.init.model == load(child, Config).trainer.init.model


REFUSED = [
    ("model", "attention_sink_tokens: 4", "attention sinks"),
    ("model", "lora_params: {r: 8}", "LoRA"),
    ("model", "hidden_sise: 4", "hidden_size"),
    ("optimizer", "optimizer_type: Lion", "AdamW, Adam, SGD"),
    ("optimizer", "weight_decai: 0.1", "weight_decay"),
    ("optimizer", "disable_lr_steps_reset: True", "count from the run's start"),
    ("optimizer", "adjust_learning_rate: {decodr: 0.5}", "decoder_kernel"),
    ("runconfig", "enable_distributed: True", "torchrun"),
    ("runconfig", "load_checkpoint_states: model", "--load_checkpoint_states"),
    ("runconfig", "max_stepps: 3", "max_steps"),
    ("train_input", "mixture_of_things: 3", "mixture"),
    ("sparsity", "param_name_patterns: 'a(b'", "no regular expression"),
]


@pytest.mark.parametrize("section,line,names", REFUSED, ids=[r[1] for r in REFUSED])
def test_what_cannot_be_honoured_is_refused_with_its_line(write, section, line, names):
    body = {
        "train_input": ["data_dir: /d", "batch_size: 2"],
        "model": ["hidden_size: 32", "num_heads: 4", "num_hidden_layers: 2", "filter_size: 64", "dropout_rate: 0.0"],
        "optimizer": ["optimizer_type: AdamW", "learning_rate: 1e-3"],
        "sparsity": ["sparsity: 0.5"],
        "runconfig": ["max_steps: 3"],
    }
    key = line.split(":")[0]
    body[section] = [x for x in body[section] if not x.startswith(f"{key}:")] + [line]
    text = "\n".join(f"{name}:\n" + "\n".join(f"  {x}" for x in lines) for name, lines in body.items())
    with pytest.raises(UserError) as e:
        load(write(text), Config)
    at = text.split("\n").index(f"  {line}") + 1
    hit = [x for x in str(e.value).split("\n") if f"old.yaml:{at}:" in x and key in x]
    assert hit and names in hit[0], str(e.value)


def test_every_key_is_spoken_of_or_carried_over(write):
    """No key of an older file disappears: each is in the new data, or a note names it."""
    doc = resolve(write(R19), Config)
    init = doc.data["trainer"]["init"]
    carried = {*init["model"], *doc.data["trainer"]["fit"]["train_dataloader"], *init["optimizer"]["AdamW"]}
    said = "\n".join(n.text for n in doc.notes)
    old = yaml12.parse(R19, "old.yaml").data
    keys = [(section, key) for section, body in old.items() for key in body]
    assert len(keys) > 30
    for section, key in keys:
        assert key in carried or f" {section}.{key}:" in said, (section, key)


def test_precision_in_the_model_of_release_2_4(write):
    text = TODAY.replace("loss_weight: 0.0625}", "loss_weight: 0.0625, mixed_precision: true, fp16_type: bfloat16}")
    assert load(write(text), Config) == load(write(TODAY, "today.yaml"), Config)
    with pytest.raises(UserError, match="contradicts"):
        load(write(text.replace("fp16_type: bfloat16}", "fp16_type: float16}", 1)), Config)


REPEATED = [  # a line of R22, the line that repeats its key, and what is said of it
    ("  weight_decay: 0.1\n", "  weight_decay: 0.3\n", "changed"),
    ("  weight_decay: 0.3\n", "  weight_decay: 0.3\n", "idle"),
    ("  learning_rate: 0.5\n", "", "changed"),  # a scalar, then R22's own list
]


@pytest.mark.parametrize("first,last,kind", REPEATED)
def test_a_repeated_key_holds_its_last_value_aloud(write, first, last, kind):
    """As PyYAML reads it, which is how such files were run."""
    alone = R22.replace("  weight_decay: 0.1\n", last) if last else R22
    key = first.split(":")[0]
    text = alone.replace(f"\n{key}", f"\n{first}{key}", 1)
    assert yaml.safe_load(text) == yaml.safe_load(alone) and text.count(f"\n{key}:") == 2
    doc = resolve(write(text), Config)
    line = text[: text.index(first)].count("\n") + 1
    (note,) = [n for n in doc.notes if "given on line" in n.text]
    assert note.kind == kind and f"old.yaml:{line + 1}: optimizer.{key.strip()}: " in note.text
    assert f"line {line} and on line {line + 1}" in note.text
    assert load(write(text), Config) == load(write(alone, "alone.yaml"), Config)


def test_todays_format_and_overrides_have_each_key_once(write):
    twice = write(TODAY.replace("    seed: 7\n", "    seed: 7\n    seed: 8\n"), "twice.yaml")
    with pytest.raises(UserError, match=r"twice\.yaml:18: duplicate key 'trainer\.init\.seed' \(first on line 17\)"):
        load(twice, Config)
    with pytest.raises(UserError, match="duplicate key"):
        load(write(R22), Config, ["optimizer={optimizer_type: SGD, momentum: 0.1, momentum: 0.2}"])
    child = write("extends: old.yaml\ntrainer: {init: {seed: 1, seed: 2}}\n", "child.yaml")
    with pytest.raises(UserError, match=r"child\.yaml:2: duplicate key"):
        load(child, Config)


@pytest.mark.realdata
def test_every_gpt_config_of_the_zoos_history_is_read(shared, tmp_path):
    """All releases from 1.8 on, as their files stand, those with a repeated key included."""
    history = shared.parent / ".mirror/Cerebras+modelzoo/repo"
    if not history.is_dir():
        pytest.skip(f"no history of the Model Zoo at {history}")

    def git(*argv: str) -> str:
        return subprocess.run(["git", "-C", str(history), *argv], capture_output=True, text=True, check=True).stdout

    read, repeated = set(), []
    for release in git("tag", "--list", "Release_*").split():
        for line in git("ls-tree", "-r", release).splitlines():
            blob, name = line.split()[2], line.split("\t")[1]
            if "/tf/" in name or not re.search(r"/gpt[23]/.*\.ya?ml$", name) or (blob, name) in read:
                continue
            read.add((blob, name))
            file = tmp_path / release / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(git("cat-file", "blob", blob))
            load(file, Config)
            notes = [n for n in resolve(file, Config).notes if "given on line" in n.text]
            repeated += [(file.name, n.kind) for n in notes]
    assert len(read) > 100
    assert {("256m_mup.yaml", "idle"), ("params_gpt3_20b.yaml", "changed")} <= set(repeated)


@pytest.mark.realdata
def test_the_zoos_release_2_1_files_equal_its_own_release_2_10(shared):
    """The zoo rewrote these for its trainer format: the same model, weights under masks, schedule and updates."""
    folder = shared / "model_zoo_configs"
    for name in ("static75", "rigl75", "sparsewide-ift_rigl75"):
        old = load(folder / f"release_2.1/params_gpt3_125m_{name}.yaml", Config).trainer.init
        new = load(folder / f"release_2.10/sparsity/pretraining/params_gpt3_125m_{name}.yaml", Config).trainer.init
        shapes = list_parameters(old.model)
        assert shapes == list_parameters(new.model)
        assert select_parameters(shapes, old.sparsity) == select_parameters(shapes, new.sparsity)
        same = ("algorithm", "sparsity", "init_method", "update", "drop_fraction")
        for a, b in zip(old.sparsity, new.sparsity, strict=True):
            assert all(getattr(a, k) == getattr(b, k) for k in same)
        assert old.schedulers == new.schedulers and old.optimizer == new.optimizer
        assert old.loop.max_steps == new.loop.max_steps
