"""The schema is strict and frozen, and refuses what it does not have by name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from modelzoo.config.errors import UserError
from modelzoo.config.loading import yaml12
from modelzoo.config.loading.load import dump, validate
from modelzoo.config.loading.yaml12 import Document
from modelzoo.config.sections.model import GPTConfig
from modelzoo.config.sections.not_supported import NOT_SUPPORTED
from modelzoo.config.trainer import Config

MODEL = {"hidden_size": 8, "num_heads": 2, "num_hidden_layers": 1, "filter_size": 16, "vocab_size": 9}
TURNED = {"position_embedding_type": "rotary", "rotary_dim": 4}
GROUPED = {"attention_module": "multiquery_attention", "extra_attention_params": {"num_kv_groups": 1}}


def build(**init) -> Config:
    init.setdefault("model", MODEL)
    fit = init.pop("fit", None)
    return validate(Document({"trainer": {"init": init, **({"fit": fit} if fit else {})}}), Config)


def model(**fields):
    return build(model={**MODEL, **fields}).trainer.init.model


def refused(**init) -> str:
    with pytest.raises(UserError) as e:
        build(**init)
    return str(e.value)


def group(value):
    return build(sparsity=value).trainer.init.sparsity


@pytest.mark.parametrize(
    "section",
    [
        {"model": {**MODEL, "hidden_size": True}},
        {"model": {**MODEL, "hidden_size": "8"}},
        {"model": {**MODEL, "hidden_size": 8.0}},
        {"model": {**MODEL, "hidden_size": 0}},
        {"model": {**MODEL, "dropout_rate": True}},
        {"model": {**MODEL, "dropout_rate": "0.1"}},
        {"model": {**MODEL, "dropout_rate": 1.0}},
        {"model": {**MODEL, "layer_norm_epsilon": float("nan")}},
        {"model": {**MODEL, "layer_norm_epsilon": float("inf")}},
        {"model": {**MODEL, "share_embedding_weights": 1}},
        {"model": {**MODEL, "share_embedding_weights": "true"}},
        {"model": {**MODEL, "share_embedding_weights": None}},
        {"seed": True}, {"seed": "1"}, {"seed": 1.0}, {"seed": -1}, {"seed": None},
        {"model_dir": 3}, {"model_dir": True},
        {"loop": {"max_steps": 1e3}}, {"loop": {"max_steps": True}}, {"loop": {"eval_frequency": -1}},
        {"loop": {"eval_frequency": 1.5}}, {"loop": {"eval_frequency": True}},
        {"sparsity": True}, {"sparsity": "0.75"}, {"sparsity": {"sparsity": True}}, {"sparsity": {"sparsity": "0.5"}},
        {"precision": {"max_gradient_norm": True}}, {"precision": {"loss_scaling_factor": "dynamc"}},
        {"optimizer": {"AdamW": {"betas": [0.9, "0.95"]}}}, {"optimizer": {"AdamW": {"betas": 0.9}}},
        {"optimizer": {"AdamW": {"weight_decay": False}}},
        {"fit": {"train_dataloader": {"batch_size": True, "data_dir": "x"}}},
        {"fit": {"train_dataloader": {"batch_size": 1, "data_dir": [True]}}},
    ],
    ids=str,
)  # fmt: skip
def test_a_value_of_another_type_is_refused(section):
    assert ": " in refused(**section)


def test_whole_numbers_are_fine_where_a_number_is_asked():
    assert model(dropout_rate=0).dropout_rate == 0.0
    assert isinstance(model(dropout_rate=0).dropout_rate, float)


# --- the model


@pytest.mark.parametrize("field", NOT_SUPPORTED)
def test_every_field_of_the_zoo_that_we_lack_is_refused_by_name_at_its_line(field):
    neutral, what = NOT_SUPPORTED[field]
    for idle in (neutral, None):
        assert model(**{field: idle}) == model()
    asked = "something" if not isinstance(neutral, bool) else not neutral
    doc = Document({"trainer": {"init": {"model": {**MODEL, field: asked}}}})
    doc.marks[("trainer", "init", "model", field)] = yaml12.Mark("f.yaml", 7)
    with pytest.raises(UserError) as e:
        validate(doc, Config)
    assert str(e.value).startswith(f"f.yaml:7: trainer.init.model.{field}: ")
    assert what in str(e.value) and "does not have" in str(e.value)


def test_one_expert_is_no_mixture():
    assert model(moe={"num_experts": 1}, moe_params={"num_experts": 1}) == model()
    assert "mixtures" in refused(model={**MODEL, "moe_params": {"num_experts": 8}})


def test_relative_positions_are_refused():
    assert "'relative'" in refused(model={**MODEL, "position_embedding_type": "relative"})


@pytest.mark.parametrize(
    "fields,words",
    [
        ({"num_heads": 3}, "num_heads 3 must divide"),
        ({"position_embedding_type": "rotary", "rotary_dim": 3}, "rotary_dim 3"),
        ({"position_embedding_type": "rotary", "rotary_dim": 6}, "rotary_dim 6"),
        ({"position_embedding_type": "alibi", "position_embedding_offset": 2}, "learned positions"),
        ({"pos_scaling_factor": 2.0}, "rotary and alibi"),
        ({"position_embedding_type": "fixed", "hidden_size": 9, "num_heads": 3}, "even hidden_size"),
        ({"mup_base_hidden_size": 4}, "both"),
        ({"output_logits_alpha": 2.0}, "without mup_base_hidden_size"),
        ({"loss_weight": 2.0}, "loss_weight"),
        ({"lr_adjustment_groups": {"x": {"param_filter_patterns": "*"}}}, "unknown x"),
        ({"initializer": {"name": "normal", "a": 1.0}}, "normal does not take a"),
        ({"initializer": "constant"}, "constant needs val"),
        ({"initializer": "nrmal"}, "initializer"),
        ({"vocab_size": 512_001}, "at most 512000"),
        ({"attention_module": "multiquery_attention"}, "num_kv_groups"),
        ({"extra_attention_params": {"num_kv_groups": 1}}, "multiquery_attention"),
        ({"extra_attention_params": {"groups": 1}}, "groups"),
        ({**GROUPED, "extra_attention_params": {"num_kv_groups": 4}}, "must divide num_heads"),
        ({"use_untied_layer_norm": True}, "gptj"),
        ({"pos_scaling_type": "llama3"}, "llama3 is for rotary"),
        ({**TURNED, "pos_scaling_type": "YaRN"}, "'YaRN'"),
        ({**TURNED, "pos_scaling_extra_args": {"low_freq_factor": 2.0}}, "pos_scaling_type: llama3"),
        ({**TURNED, "pos_scaling_type": "llama3", "pos_scaling_extra_args": {"low_freq_factor": 4.0}}, "must be below"),
    ],
)
def test_models_that_contradict_themselves(fields, words):
    assert words in refused(model={**MODEL, **fields})


def test_a_gptj_has_the_zoos_defaults_and_others_theirs():
    found = model(name="gptj", rotary_dim=2)
    assert found.position_embedding_type == "rotary" and not found.use_ffn_bias and found.embedding_dropout_rate == 0.1
    assert found.parallel and found.tied_norms and found.scale_qk_dot_by_d is False
    asked = model(name="gptj", position_embedding_type="learned", use_ffn_bias=True, embedding_dropout_rate=0.3)
    assert asked.position_embedding_type == "learned" and asked.use_ffn_bias and asked.embedding_dropout_rate == 0.3
    assert model(residual_dropout_rate=0.25) == model(dropout_rate=0.25) and not model().parallel


def test_a_model_without_later_parts_is_written_as_before():
    """Checkpoints and configs of it have the bytes that they had, and older trainers read them."""
    idle = {
        "attention_module": "aiayn_attention", "extra_attention_params": {}, "use_untied_layer_norm": False,
        "pos_scaling_type": "linear", "pos_scaling_extra_args": None,
    }  # fmt: skip
    assert not model(**idle).model_dump().keys() & idle.keys()
    waves = {"pos_scaling_type": "llama3", "pos_scaling_extra_args": {"low_freq_factor": 2.0}}
    shared = model(**GROUPED, **waves, name="gptj", use_untied_layer_norm=True, rotary_dim=2)
    assert shared.model_dump().keys() >= idle.keys() and GPTConfig.model_validate(shared.model_dump()) == shared


def test_both_names_of_embedding_dropout():
    assert model(embd_pdrop=0.3) == model(embedding_dropout_rate=0.3)


def test_rotary_turns_a_quarter_of_each_head_unless_told():
    assert model(position_embedding_type="rotary", hidden_size=128, num_heads=4).rotary_width == 8
    assert model(position_embedding_type="rotary", hidden_size=128, num_heads=4, rotary_dim=32).rotary_width == 32


# --- sparsity: the forms of cerebras.pytorch.sparse.configure


def test_a_number_a_mapping_and_a_list_mean_groups():
    assert group(0.75) == group({"sparsity": 0.75}) == group([{"sparsity": 0.75}])
    assert group(0.75) == group({"groups": [{"sparsity": 0.75}]})
    assert group([0.5, 0.75])[1].sparsity.value == 0.75
    assert group(None) == () == group([])
    assert group({"type": "SET", "schedule": 0.5}) == group({"algorithm": "set", "sparsity": 0.5})
    nested = {"groups": {"algorithm": "set", "params": {"sparsity": 0.5}}}
    assert group(nested) == group({"algorithm": "set", "sparsity": 0.5})


def test_schedule_forms():
    cycling = group({"algorithm": "set", "sparsity": [0.5, 0.75]})[0].sparsity
    assert (cycling.type, cycling.values) == ("cycling", (0.5, 0.75))
    assert group({"algorithm": "gmp", "sparsity": {"type": "EXP", "init": 0, "gamma": -0.1}})[0].sparsity.final == 1.0


@pytest.mark.parametrize(
    "value,words",
    [
        (1.0, "below 1"),
        (1, "below 1"),
        (-0.1, "at least 0"),
        ({}, "missing key"),
        ({"algorithm": "static"}, "missing key"),
        ({"algorithm": "riggle", "sparsity": 0.5}, "algorithm"),
        ({"sparsity": 0.5, "schedule": 0.5}, "another name"),
        ({"algorithm": "set", "type": "set", "sparsity": 0.5}, "another name"),
        ({"sparsity": {"type": "linear", "init": 0, "slope": 1}}, "static sparsity is one number"),
        ({"sparsity": 0.5, "update": {"freq": 1}}, "never change"),
        ({"algorithm": "gmp", "sparsity": 0.5}, "algorithm: static"),
        ({"sparsity": 0.5, "drop_fraction": 0.3}, "drop_fraction belongs to set, rigl, "),
        ({"sparsity": 0.5, "regrow_warmup": 10}, "regrow_warmup belongs to set, rigl, "),
        ({"algorithm": "gmp", "sparsity": [0.1, 0.5], "regrow_warmup": True}, "mest, chts, chtss, not gmp"),
        ({"algorithm": "set", "sparsity": 0.5, "regrow_warmup": -1}, "above 0"),
        ({"algorithm": "set", "sparsity": 0.5, "regrow_warmup": 9, "compat": "cstorch"}, "remove regrow_warmup"),
        ({"algorithm": "set", "sparsity": 0.5, "gamma": 0.1}, "gamma belongs to mest, not set"),
        ({"algorithm": "mest", "sparsity": 0.5, "link_predictor": "ch2_l3n"}, "belongs to chts, chtss, not mest"),
        ({"algorithm": "sr_ste", "sparsity": 0.5}, "sr_ste trains N:M patterns: give nm"),
        ({"algorithm": "sr_ste", "nm": [2, 4], "update": {"freq": 5}}, "among all: remove update"),
        ({"algorithm": "sr_ste", "nm": [2, 4], "mup_base_density": 1.0}, "remove mup_base_density"),
        ({"algorithm": "static", "nm": [2, 4], "lambda_w": 0.1}, "lambda_w belongs to sr_ste, not static"),
        ({"algorithm": "smet", "sparsity": 0.5, "compat": "cstorch"}, "knows static, gmp, set, rigl, not smet"),
        (
            {"algorithm": "granet", "sparsity": 0.5},
            "granet prunes along a schedule; for one level use `algorithm: rigl`",
        ),
        ({"algorithm": "chtss", "nm": [2, 4]}, "for one level use `algorithm: chts`"),
        (
            {"algorithm": "gmp", "sparsity": {"type": "sigmoid", "final": 0.5, "end": 5}, "compat": "cstorch"},
            "use cubic",
        ),
        ({"algorithm": "set", "sparsity": 0.5, "balance_in_groups": 2}, "belong to rigl"),
        ({"algorithm": "rigl", "sparsity": 0.5, "balance_in_groups": 2, "balance_out_groups": 2}, "not both"),
        ({"algorithm": "rigl", "sparsity": 0.5, "balance_in_groups": 2, "distribution": "erk"}, "uniform"),
        ({"algorithm": "set", "sparsity": 0.5, "update": {"freq": 1, "steps": [3]}}, "not both"),
        ({"algorithm": "set", "sparsity": 0.5, "update": {"start": 5, "stop": 5}}, "must come after start"),
        ({"algorithm": "set", "sparsity": 0.5, "update": {"freq": 0}}, "above 0"),
        ({"algorithm": "set", "sparsity": 0.5, "update": {"steps": []}}, "at least 1 items"),
        ({"algorithm": "set", "sparsity": []}, "at least 1 items"),
        (
            {"algorithm": "gmp", "sparsity": {"type": "cubic", "final": 0.5, "begin": 5, "end": 5}},
            "must come after begin",
        ),
        ({"algorithm": "gmp", "sparsity": {"type": "linear", "init": 0}}, "missing key"),
        ({"algorithm": "gmp", "sparsity": {"init": 0, "slope": 1}}, "a mapping with `type`"),
        ({"algorithm": "gmp", "init_method": "from_zeros", "sparsity": [0.1, 0.2]}, "from_zeros"),
        ({"sparsity": 0.5, "max_sparsity": 1.0}, "below 1"),
        ({"sparsity": 0.5, "block": [32]}, "block"),
        ({"sparsity": 0.5, "block": [0, 32]}, "above 0"),
        ({"sparsity": 0.5, "block": [32, 32], "shared_inputs": 4}, "give block or shared_inputs, not both"),
        ({"block": [32, 32], "nm": [2, 4]}, "give block or nm, not both"),
        ({"sparsity": 0.5, "block": [32, 32], "compat": "cstorch"}, "remove block"),
        ({"algorithm": "rigl", "sparsity": 0.5, "block": [4, 4], "balance_in_groups": 2}, "block or balance_in_groups"),
        ({"algorithm": "rigl", "sparsity": 0.5, "shared_inputs": 4, "balance_out_groups": 2}, "not both"),
        ({"sparsity": 0.5, "shared_inputs": 4, "distribution": "erk"}, "shared_inputs needs `distribution: uniform`"),
        ({"nm": [2, 4], "storage": "packed"}, "nm is kept whole"),
        ({"nm": [4, 2], "sparsity": 0.5}, "must be smaller"),
        ({"nm": [2, 4], "sparsity": 0.75}, "is sparsity 0.5"),
        ({"nm": [2, 4], "algorithm": "gmp", "sparsity": {"type": "cubic", "final": 0.5, "end": 9}}, "is sparsity 0.5"),
        ({"nm": [2, 4], "init_method": "from_zeros"}, "topk"),
    ],
    ids=str,
)
def test_sparsity_that_makes_no_sense(value, words):
    assert words in refused(sparsity=value)


def test_a_preset_is_what_is_not_given():
    (smet,) = group({"algorithm": "smet", "sparsity": 0.5})
    assert (smet.update.freq, smet.drop_fraction.value, smet.regrow_warmup) == (100, 0.2, 100)
    own = {"update": {"freq": 7}, "drop_fraction": 0.1, "regrow_warmup": None}
    (smet,) = group({"algorithm": "smet", "sparsity": 0.5, **own})
    assert (smet.update.freq, smet.drop_fraction.value, smet.regrow_warmup) == (7, 0.1, None)
    assert group(smet.model_dump(mode="json")) == (smet,)
    for written, meant in ((True, 100), (False, None), (0, None), (30, 30)):
        assert group({"algorithm": "rigl", "sparsity": 0.5, "regrow_warmup": written})[0].regrow_warmup == meant


def test_patterns_are_named_in_the_configs_words():
    assert group(0.5)[0].pattern is None and group({"sparsity": 0.5, "block": [1, 1]})[0].pattern is None
    assert group({"sparsity": 0.5, "block": [32, 2]})[0].pattern == "block: [32, 2]"
    assert group({"sparsity": 0.5, "shared_inputs": 4})[0].pattern == "shared_inputs: 4"
    (two_of_four,) = group({"nm": [2, 4]})  # the level follows from the pattern
    assert two_of_four.pattern == "nm: [2, 4]" and two_of_four.sparsity.value == 0.5


# --- optimizer, schedulers, loop, data


LINEAR = {"LinearLR": {"initial_learning_rate": 0.0, "end_learning_rate": 1e-3, "total_iters": 5}}
ONE_CYCLE = {"initial_learning_rate": 0, "max_lr": 1}
CONSTANT = {"ConstantLR": {"learning_rate": 1e-3}}


@pytest.mark.parametrize(
    "init,words",
    [
        ({"optimizer": {"AdamW": {}, "SGD": {}}}, "exactly one"),
        ({"optimizer": {}}, "exactly one"),
        ({"optimizer": {"Lion": {}}}, "unknown key 'trainer.init.optimizer.Lion'"),
        ({"optimizer": {"SGD": {"nesterov": True}}}, "momentum above 0"),
        ({"optimizer": {"AdamW": {"betas": [0.9, 1.0]}}}, "below 1"),
        ({"optimizer": {"SGD": {}}, "sparsity": {"algorithm": "smet", "sparsity": 0.5}}, "SGD counts no ages"),
        (
            {
                "optimizer": {"Adam": {"correct_bias": False}},
                "sparsity": [0.5, {"algorithm": "set", "sparsity": 0.5, "regrow_warmup": 3}],
            },
            "goes with Adam's correct_bias",
        ),
        ({"optimizer": {"AdamW": {"amsgrad": True}}}, "amsgrad"),
        ({"optimizer": {"AdamW": {"lr": 1e-3}}, "schedulers": [LINEAR]}, "learning rate once"),
        ({"schedulers": [LINEAR, LINEAR]}, "SequentialLR"),
        ({"schedulers": {"SequentialLR": {"schedulers": []}}}, "at least 1"),
        ({"schedulers": {"SequentialLR": {"schedulers": [CONSTANT, LINEAR]}}}, "ConstantLR needs total_iters"),
        ({"schedulers": {"SequentialLR": {"schedulers": [LINEAR, LINEAR], "milestones": [1, 2]}}}, "1 rising"),
        ({"schedulers": {"SequentialLR": {"schedulers": [LINEAR] * 3, "milestones": [2, 1]}}}, "2 rising"),
        ({"schedulers": {"ChainedLR": {"schedulers": [CONSTANT, LINEAR]}}}, "must not be 0"),
        ({"schedulers": {"OneCycleLR": {**ONE_CYCLE, "three_phase": True, "pct_start": 0.6}}}, "at most 0.5"),
        (
            {"schedulers": {"PiecewiseConstantLR": {"learning_rates": [1, 2, 3], "milestones": [5]}}},
            "one learning rate",
        ),
        ({"loop": {"max_steps": 1, "num_epochs": 1}}, "one of"),
        ({"precision": {"max_gradient_norm": 1.0, "max_gradient_value": 1.0}}, "not both"),
        (
            {"fit": {"train_dataloader": {"batch_size": 3, "data_dir": "x"}}, "loop": {"grad_accum_steps": 2}},
            "must divide",
        ),
        ({"fit": {"train_dataloader": {"batch_size": 3}}}, "either data_dir or mixture"),
        ({"fit": {"train_dataloader": {"batch_size": 3, "data_dir": "x", "mixture": []}}}, "mixture"),
        ({"callbacks": [{"GlobalFlags": {"other.flag": 1}}]}, "only csx.* flags"),
    ],
    ids=str,
)
def test_sections_that_contradict_themselves(init, words):
    assert words in refused(**init)


def test_bare_names_and_lone_values():
    loggers = ["JSONLLogger", {"TensorBoardLogger": None}]
    init = build(callbacks="ComputeNorm", loggers=loggers, schedulers=LINEAR).trainer.init
    assert [c.name for c in init.callbacks] == ["ComputeNorm"]
    assert [x.name for x in init.loggers] == ["JSONLLogger", "TensorBoardLogger"]
    assert init.schedulers[0].value.total_iters == 5
    flags = build(callbacks=[{"ScopedTrainFlags": {"csx.performance.micro_batch_size": 4}}]).trainer.init.callbacks[0]
    assert flags.value.model_extra == {"csx.performance.micro_batch_size": 4}
    assert build(device="CPU").trainer.init.backend.backend_type == "CPU"
    assert build(backend={"backend_type": "csx"}).trainer.init.backend.backend_type == "CSX"


def test_a_section_or_list_without_a_word_is_as_if_it_were_not_there():
    """As YAML leaves it when all below a key is commented out, and as `--set KEY=null` clears it."""
    train = {"batch_size": 1, "data_dir": "x"}
    names = ("backend", "precision", "loop", "checkpoint", "logging", "schedulers", "callbacks", "loggers", "sparsity")
    cleared = build(
        **dict.fromkeys(names),
        model={**MODEL, "extra_attention_params": None},
        fit={"train_dataloader": train, "val_dataloader": None},
    )
    assert cleared == build(fit={"train_dataloader": train})
    assert "takes a mapping" in refused(model=None)  # which has no default


def test_keep_checkpoints():
    assert build().keep_checkpoints == 3
    assert build(callbacks=[{"KeepNCheckpoints": {"n": 7}}]).keep_checkpoints == 7
    assert build(checkpoint={"keep": None}).keep_checkpoints is None


# --- frozen, and round trips


def sections(value) -> list[BaseModel]:
    if isinstance(value, BaseModel):
        return [value, *(s for name in type(value).model_fields for s in sections(getattr(value, name)))]
    return [s for item in value for s in sections(item)] if isinstance(value, tuple) else []


FULL = dict(
    optimizer={"AdamW": {}},
    schedulers=[{"SequentialLR": {"schedulers": [LINEAR, {"ScalePerParamLR": {"scheduler": CONSTANT}}]}}],
    sparsity=[{"algorithm": "rigl", "sparsity": 0.5, "update": {"freq": 3},
               "drop_fraction": {"type": "power", "init": 0.3, "beta": 0.9}}],
    callbacks=["ComputeNorm", {"GlobalFlags": {"csx.x": 1}}], loggers=["ProgressLogger"],
    model={**MODEL, "initializer": "xavier_uniform",
           "lr_adjustment_groups": {"embedding": {"param_filter_patterns": ["*"]}}},
    fit={"train_dataloader": {"batch_size": 2, "mixture": [{"data_dir": "x", "weight": 1}]}, "val_dataloader": []},
)  # fmt: skip


def test_nothing_changes_after_validation():
    found = sections(build(**FULL))
    assert len(found) > 20
    for section in found:
        for name in type(section).model_fields:
            with pytest.raises(ValidationError):
                setattr(section, name, None)


def test_no_list_is_handed_out():
    for section in sections(build(**FULL)):
        assert not any(isinstance(getattr(section, name), list) for name in type(section).model_fields)


def test_a_dump_of_everything_reloads_equal():
    config = build(**FULL)
    assert validate(yaml12.parse(dump(config), "f.yaml"), Config) == config


NUMBERS = st.floats(0, 0.9)
SCHEDULES = st.one_of(
    st.builds(dict, type=st.just("linear"), init=NUMBERS, slope=NUMBERS, final=st.none() | NUMBERS),
    st.builds(dict, type=st.just("exp"), init=NUMBERS, gamma=NUMBERS),
    st.builds(dict, type=st.just("cosine"), init=NUMBERS, half_period=st.integers(1, 9)),
    st.lists(NUMBERS, min_size=1, max_size=3),
)
UPDATES = st.one_of(
    st.none(),
    st.builds(dict, freq=st.integers(1, 9), start=st.integers(0, 3), stop=st.none() | st.integers(4, 9)),
    st.builds(dict, steps=st.lists(st.integers(0, 9), min_size=1, max_size=4)),
)
GROUPS = st.lists(
    st.builds(dict, algorithm=st.sampled_from(["set", "rigl"]), sparsity=NUMBERS | SCHEDULES, update=UPDATES,
              drop_fraction=NUMBERS | SCHEDULES, seed=st.none() | st.integers(0, 9)),
    max_size=3,
)  # fmt: skip


@given(GROUPS, st.none() | st.integers(1, 10**9), st.floats(0, 1) | st.integers(0, 99) | st.none())
def test_any_config_survives_its_dump(groups, steps, frequency):
    config = build(sparsity=groups, loop={"max_steps": steps, "eval_frequency": frequency})
    again = validate(yaml12.parse(dump(config), "f.yaml"), Config)
    assert again == config
    assert type(again.trainer.init.loop.eval_frequency) is type(frequency)  # 1 is every step, 1.0 once a run
