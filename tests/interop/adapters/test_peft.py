"""Adapters in PEFT's layout: the peft library over our Hugging Face export computes what our model does, both ways."""

import json

import pytest
import torch
from safetensors.torch import save_file

from modelzoo.adapter_files import OUR_FILES, PEFT_FILES
from modelzoo.config.errors import UserError
from modelzoo.config.trainer import Init
from modelzoo.interop.adapters.load import load_adapters
from modelzoo.interop.adapters.lora import make_lora_files, read_lora
from modelzoo.interop.adapters.soft_prompt import make_prompt_files, read_prompt
from modelzoo.interop.hf.config import choose_family, make_config_json
from modelzoo.interop.hf.families import FFN_OUT, GPT2, NEOX
from modelzoo.interop.hf.tensors import convert_to_hf, fold_scales
from modelzoo.models.adapt import adapt
from modelzoo.models.gpt import GPTModel
from modelzoo.names import SOFT_PROMPT, is_adapter, is_lora
from tests.support import TINY, batch

library, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
MUP = {
    "mup_base_hidden_size": 8, "mup_base_filter_size": 24, "embeddings_scale": 7.0, "attention_logits_alpha": 2.5,
}  # fmt: skip
BARE = dict.fromkeys(("use_ffn_bias", "use_ffn_bias_in_attention", "use_projection_bias_in_attention"), False)
ROTARY, ALIBI = {"position_embedding_type": "rotary", "rotary_dim": 4}, {"position_embedding_type": "alibi"}
FAMILIES = {
    "gpt2": {},
    "gpt2, mup, by layer": {**MUP, "scale_qk_dot_by_layer_idx": True},
    "gpt_neox": {**ROTARY, **MUP},
    "llama": {**ROTARY, "rotary_dim": 8, "norm_type": "rmsnorm", "nonlinearity": "swiglu", "attention_inner_dim": 16},
    "llama, shared keys": {
        **ROTARY, "norm_type": "rmsnorm", "nonlinearity": "swiglu", "num_heads": 4,
        "attention_module": "multiquery_attention", "extra_attention_params": {"num_kv_groups": 2},
    },
    "pythia": {**ROTARY, "name": "gptj", "use_untied_layer_norm": True, "use_ffn_bias": True},
    "gptj": {
        **ROTARY, "name": "gptj", "use_projection_bias_in_attention": False, "use_ffn_bias_in_attention": False,
    },
    "bloom": {**ALIBI, "filter_size": 64, "embedding_layer_norm": True, "nonlinearity": "gelu_new",
              "embeddings_scale": 3.0},
    "mpt": {**ALIBI, **BARE, "filter_size": 64, "norm_type": "biasless-layernorm"},
}  # fmt: skip
TARGETS = {
    "queries and values": ["*proj_q*", "*proj_v*"],
    "keys, in one layer": ["*layers.1.*proj_k*"],
    "everything": ["*"],
    "no attention": ["*ffn*"],
}


def adapted(fields: dict, **sections) -> tuple[GPTModel, Init]:
    """A model with its adapters, all at values that hide no fault."""
    init = Init.model_validate({"model": {**TINY, **fields}, **sections})
    model, draw = adapt(GPTModel(init.model), init).eval(), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=draw) * 0.3)
    return model, init


def base(model: GPTModel):
    """The model without its adapters, as Hugging Face's."""
    c = model.model.config
    family = choose_family(c)
    config = transformers.AutoConfig.for_model(**make_config_json(c, family, None))
    config._attn_implementation = "eager"
    made = transformers.AutoModelForCausalLM.from_config(config).eval()
    weights = {n: p.detach() for n, p in model.named_parameters()}
    made.load_state_dict(convert_to_hf(fold_scales(weights, c), c, family), strict=False)
    made.tie_weights()
    return made, family


def written(folder, names, files):
    config, tensors = files
    folder.mkdir()
    (folder / names[0]).write_text(json.dumps(config))
    save_file({n: x.contiguous() for n, x in tensors.items()}, folder / names[1])
    return str(folder)


@torch.no_grad()
def logits(model: GPTModel, ids) -> torch.Tensor:
    return model.model.logits(model.model.hidden(ids))


@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("fields", FAMILIES.values(), ids=FAMILIES)
@torch.no_grad()
def test_lora(tmp_path, fields, targets):
    model, init = adapted(fields, lora={"r": 3, "alpha": 5, "target_modules": targets})
    weights = {n: p.detach() for n, p in model.named_parameters()}
    theirs, family = base(model)
    folder = written(tmp_path / "a", PEFT_FILES, make_lora_files(weights, init.lora, init.model, family, "base"))
    ids = batch()["input_ids"].long()
    expected, plain = logits(model, ids), theirs(ids).logits
    wrapped = library.PeftModel.from_pretrained(theirs, folder).eval()
    assert torch.allclose(wrapped(ids).logits, expected, atol=1e-5)
    assert (plain - expected).abs().max() > 1e-4
    section, found = read_lora(folder, init.model, family)  # and back: the same matrices under the same names
    assert (section.r, section.scale) == (3, pytest.approx(5 / 3))
    ours = {n: x for n, x in weights.items() if is_lora(n)}
    assert found.keys() == ours.keys()
    for name, x in found.items():
        assert torch.allclose(x, ours[name], atol=1e-6), name


@pytest.mark.parametrize("fields", FAMILIES.values(), ids=FAMILIES)
@torch.no_grad()
def test_lora_made_by_peft(tmp_path, fields):
    """PEFT's own adapters: dense B over packed modules, ranks and alphas by pattern, rsLoRA's scale."""
    model, _ = adapted(fields)
    theirs, family = base(model)
    packed = family.packed[0] if family.packed else "self_attn.k_proj"
    down = family.within[FFN_OUT]
    config = library.LoraConfig(
        r=3, lora_alpha=4, target_modules=[packed, down], rank_pattern={down: 2}, alpha_pattern={f"0.{down}": 7},
        use_rslora=True, fan_in_fan_out=family.transposed, task_type="CAUSAL_LM",
    )  # fmt: skip
    wrapped, draw = library.get_peft_model(theirs, config).eval(), torch.Generator().manual_seed(4)
    for name, p in wrapped.named_parameters():
        if "lora_" in name:
            p.copy_(torch.randn(p.shape, generator=draw) * 0.3)
    wrapped.save_pretrained(tmp_path)
    section, matrices = read_lora(str(tmp_path), model.model.config, family)
    init = Init.model_validate({"model": {**TINY, **fields}, "lora": section.model_dump()})
    ours = adapt(GPTModel(init.model), init).eval()
    missing, unknown = ours.load_state_dict({**model.state_dict(), **matrices}, strict=False)
    assert not missing and not unknown
    ids = batch()["input_ids"].long()
    assert torch.allclose(logits(ours, ids), wrapped(ids).logits, atol=1e-5)


@pytest.mark.parametrize("fields", FAMILIES.values(), ids=FAMILIES)
@torch.no_grad()
def test_prefix(tmp_path, fields):
    model, init = adapted(fields, soft_prompt={"tokens": 3, "place": "prefix"})
    rows = model.get_parameter(SOFT_PROMPT).detach()
    theirs, _ = base(model)
    names, files = make_prompt_files(rows, init.soft_prompt, init.model, "base")
    folder = written(tmp_path / "a", names, files)
    ids = batch(length=9)["input_ids"].long()
    with_prompt = torch.cat((torch.arange(37, 40).expand(len(ids), -1), ids), 1)
    wrapped = library.PeftModel.from_pretrained(theirs, folder).eval()
    assert torch.allclose(wrapped(input_ids=ids).logits[:, -9:], logits(model, with_prompt)[:, 3:], atol=1e-5)
    found, place = read_prompt(folder, init.model)
    assert place == "prefix" and torch.allclose(found, rows, atol=1e-6)


@torch.no_grad()
def test_prefix_made_by_peft(tmp_path):
    model, _ = adapted(MUP)
    theirs, _ = base(model)
    config = library.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    wrapped = library.get_peft_model(theirs, config).eval()
    wrapped.save_pretrained(tmp_path)
    rows, place = read_prompt(str(tmp_path), model.model.config)
    ours, _ = adapted(MUP, soft_prompt={"tokens": 2, "place": place})
    ours.load_state_dict({**model.state_dict(), SOFT_PROMPT: rows})
    ids = batch(length=9)["input_ids"].long()
    with_prompt = torch.cat((torch.arange(37, 39).expand(len(ids), -1), ids), 1)
    assert torch.allclose(wrapped(input_ids=ids).logits[:, -9:], logits(ours, with_prompt)[:, 2:], atol=1e-5)


def test_between_source_and_target_is_our_own_layout(tmp_path):
    model, init = adapted(MUP, soft_prompt={"tokens": 2})
    rows = model.get_parameter(SOFT_PROMPT).detach()
    names, files = make_prompt_files(rows, init.soft_prompt, init.model, "base")
    assert names == OUR_FILES and "peft_type" not in files[0]
    found, place = read_prompt(written(tmp_path / "a", names, files), init.model)
    assert place == "before_target" and torch.allclose(found, rows, atol=1e-6)


@pytest.mark.parametrize(
    "change,what",
    [
        ({"peft_type": "IA3"}, "is a IA3 adapter, not LORA"),
        ({"use_dora": True}, "use_dora has no place"),
        ({"bias": "all"}, "bias: 'all' has no place"),
    ],
)
def test_adapters_that_have_no_place_here(tmp_path, change, what):
    model, init = adapted({}, lora={})
    weights = {n: p.detach() for n, p in model.named_parameters()}
    config, tensors = make_lora_files(weights, init.lora, init.model, GPT2, "base")
    folder = written(tmp_path / "a", PEFT_FILES, ({**config, **change}, tensors))
    with pytest.raises(UserError, match=what):
        read_lora(folder, init.model, GPT2)


NAMED = [  # as PEFT takes them, and what names other modules than those
    ({"target_modules": ["c_attn", "c_fc"]}, ["c_attn"], "c_fc, of which"),
    ({"target_modules": r".*\.(c_attn|c_fc)"}, r".*\.c_fc", r"\.c_fc does not name .*c_attn, of which"),
    (
        {"target_modules": ["c_attn"], "layers_to_transform": [1]},
        ["c_attn", "c_fc"],
        r"names .*h\.1\.mlp\.c_fc, of which",
    ),
    ({"target_modules": "all-linear", "exclude_modules": ["c_fc"]}, ["c_fc"], "does not name .*, of which"),
]


@pytest.mark.parametrize("section,others,what", NAMED, ids=str)
def test_modules_that_are_named_are_those_that_have_tensors(tmp_path, section, others, what):
    """By PEFT's own reading of its config; one that was edited, or is another adapter's, is refused."""
    model, _ = adapted({})
    theirs, family = base(model)
    config = library.LoraConfig(r=2, fan_in_fan_out=True, task_type="CAUSAL_LM", **section)
    library.get_peft_model(theirs, config).save_pretrained(tmp_path)
    names = read_lora(str(tmp_path), model.model.config, family)[1]
    assert names
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "target_modules": others}))
    with pytest.raises(UserError, match=rf"adapter_config\.json: target_modules .*{what} adapter_model.safetensors"):
        read_lora(str(tmp_path), model.model.config, family)


def test_folders_that_hold_no_adapter_of_this_model(tmp_path):
    model, init = adapted({}, lora={}, soft_prompt={"tokens": 2, "place": "prefix"})
    with pytest.raises(UserError, match=r"holds neither adapter_config\.json"):
        read_prompt(str(tmp_path), init.model)
    weights = {n: p.detach() for n, p in model.named_parameters()}
    other = make_lora_files(weights, init.lora, init.model, GPT2, "base")
    folder = written(tmp_path / "lora", PEFT_FILES, other)
    with pytest.raises(UserError, match="is a LORA adapter, not PROMPT_TUNING"):
        read_prompt(folder, init.model)
    with pytest.raises(UserError, match="nothing of a GPTNeoXForCausalLM"):
        read_lora(folder, init.model, NEOX)
    names, files = make_prompt_files(weights[SOFT_PROMPT][:, :8], init.soft_prompt, init.model, "base")
    with pytest.raises(UserError, match=r"prompt_embeddings \[2, 8\]; the model's width is 16"):
        read_prompt(written(tmp_path / "prompt", names, files), init.model)
    (tmp_path / "prompt" / names[0]).write_text("{")
    with pytest.raises(UserError, match="is not valid JSON"):
        read_prompt(str(tmp_path / "prompt"), init.model)


def test_a_run_begins_from_an_adapters_folder(tmp_path):
    """`soft_prompt.path` and `lora.path`: what was written is what begins; sizes that differ are named."""
    model, init = adapted(MUP, soft_prompt={"tokens": 2, "place": "prefix"}, lora={"r": 3, "alpha": 5})
    weights = {n: p.detach() for n, p in model.named_parameters()}
    family = choose_family(init.model)
    matrices = make_lora_files(weights, init.lora, init.model, family, "base")
    low = written(tmp_path / "lora", PEFT_FILES, matrices)
    rows = written(tmp_path / "prompt", *make_prompt_files(weights[SOFT_PROMPT], init.soft_prompt, init.model, "base"))

    def begun(prompt, section):
        sections = {"soft_prompt": {"init": "file", "path": rows, **prompt}, "lora": {"path": low, **section}}
        init = Init.model_validate({"model": {**TINY, **MUP}, **sections})
        model = adapt(GPTModel(init.model), init)
        load_adapters(model, init)
        return dict(model.named_parameters())

    found = begun({"tokens": 2, "place": "prefix"}, {"r": 3, "alpha": 5})
    for name, x in weights.items():
        if is_adapter(name):
            assert torch.allclose(found[name], x, atol=1e-6), name
    with pytest.raises(UserError, match="has tokens: 2 and place: prefix; give these"):
        begun({"tokens": 2}, {"r": 3, "alpha": 5})
    with pytest.raises(UserError, match=r"has r: 3, alpha: 5 and target_modules: \[model"):
        begun({"tokens": 2, "place": "prefix"}, {"r": 3})
