"""A Hugging Face model's config.json as our model section: GPT-2, GPT-J, GPT-NeoX, Llama and what is built like it.

A key that changes what the model computes is taken, or refused by name.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import ValidationError

from modelzoo.config.errors import UserError
from modelzoo.config.sections.model import GPTConfig
from modelzoo.interop.hf import schemas
from modelzoo.interop.hf.families import GPT2, GPTJ, LLAMA, NEOX, Family
from modelzoo.records import check_record


class Found(NamedTuple):
    """A model of Hugging Face's.

    Attributes:
        section: trainer.init.model, a valid one.
        notes: what is otherwise here than there, a line each.
    """

    family: Family
    section: dict[str, Any]
    notes: tuple[str, ...] = ()


def read_model(found: Any, path: str) -> Found:
    """What a config.json (`path`) holds.

    Raises:
        UserError: another model type, a value that is none, or something that this trainer's model does not compute;
            names the key.
    """
    kind = found.get("model_type") if isinstance(found, dict) else None
    if isinstance(kind, str) and kind not in schemas.KINDS:
        raise UserError(
            f"{path}: model_type {kind[:40]!r}; can be imported: {', '.join((*schemas.KINDS, schemas.BIOGPT))}"
        )
    if kind == "gpt_neox":
        return _read_neox(found, path)
    if kind in schemas.LLAMAS:
        return _read_llama(found, kind, path)
    return _read_gpt2(found, kind == "gptj", path)


def _read_gpt2(found: Any, gptj: bool, path: str) -> Found:
    family, defaults = (GPTJ, schemas.GPTJ_DEFAULTS) if gptj else (GPT2, schemas.GPT2_DEFAULTS)
    given = _fill(found, schemas.GPT2Config, defaults, family, path)
    if given.get("add_cross_attention"):
        raise UserError(f"{path}: add_cross_attention: true asks for cross-attention, which this trainer does not have")
    given.setdefault("n_inner", 4 * given["n_embd"])
    _require_whole_heads(path, "n_head", given["n_head"], "n_embd", given["n_embd"])
    given["activation_function"] = schemas.ACTIVATIONS.get(given["activation_function"], given["activation_function"])
    if gptj:
        if isinstance(found, dict) and found.get("rotary_dim", 0) is None:
            raise UserError(f"{path}: rotary_dim: null has no meaning here; give the rotated dimensions of a head")
        attention = dict.fromkeys(("use_projection_bias_in_attention", "use_ffn_bias_in_attention"), False)
        fixed = {"name": "gptj", "use_ffn_bias": True, "use_bias_in_output": True, **attention}
        return _finish({k: v for k, v in given.items() if k != "scale_attn_by_inverse_layer_idx"}, schemas.GPT2_KEYS,
                       {**fixed, "position_embedding_type": "rotary"}, family, path)  # fmt: skip
    given.pop("rotary_dim", None)
    scaled = "scaled_dot_product" if given.get("scale_attn_weights", True) else "dot_product"
    fixed = {"name": "gpt2", "position_embedding_type": "learned", "attention_type": scaled}
    return _finish(given, schemas.GPT2_KEYS, fixed, family, path)


def _read_neox(found: Any, path: str) -> Found:
    given = _fill(found, schemas.NeoXConfig, schemas.NEOX_DEFAULTS, NEOX, path)
    head_dim = _require_whole_heads(
        path, "num_attention_heads", given["num_attention_heads"], "hidden_size", given["hidden_size"]
    )
    rope, share = _read_rope(given, given["rotary_emb_base"], given["rotary_pct"], path)
    width = int(head_dim * share) if 0 < share <= 1 else 0
    if width < 2 or width % 2:
        raise UserError(f"{path}: rotary_pct: {share} of a head of {head_dim} is no even number of dimensions")
    given["hidden_act"] = schemas.ACTIVATIONS.get(given["hidden_act"], given["hidden_act"])
    bias = given["attention_bias"]
    fixed = {
        "name": "gpt3", **rope, "rotary_dim": width, "use_ffn_bias": True,
        "use_projection_bias_in_attention": bias, "use_ffn_bias_in_attention": bias,
    }  # fmt: skip
    if given["use_parallel_residual"]:
        fixed |= {"name": "gptj", "use_untied_layer_norm": True, "embd_pdrop": given["hidden_dropout"]}
    return _finish(given, schemas.LATER_KEYS, fixed, NEOX, path)


def _read_llama(found: Any, kind: str, path: str) -> Found:
    given = _fill(found, schemas.LlamaConfig, schemas.LLAMAS[kind], LLAMA, path)
    heads, width = given["num_attention_heads"], given["hidden_size"]
    head_dim = given.get("head_dim") or _require_whole_heads(path, "num_attention_heads", heads, "hidden_size", width)
    rope, share = _read_rope(given, given["rope_theta"], 1.0, path)
    if share != 1.0:
        raise UserError(f"{path}: partial_rotary_factor: {share} turns a part of a head; the whole is turned here")
    if given["hidden_act"] not in schemas.GATES:
        act = given["hidden_act"][:40]
        raise UserError(f"{path}: hidden_act: {act!a} is no gate of this trainer's; known: {', '.join(schemas.GATES)}")
    qkv = kind == "qwen2" or bool(given.get("attention_bias", False))
    given["hidden_act"] = schemas.GATES[given["hidden_act"]]
    fixed = {
        "name": "gpt3", **rope, "rotary_dim": head_dim, "norm_type": "rmsnorm", "dropout_rate": 0.0,
        "use_projection_bias_in_attention": qkv, "use_ffn_bias_in_attention": qkv and kind != "qwen2",
        "use_ffn_bias": bool(given.get("mlp_bias", False)),
    }  # fmt: skip
    if head_dim * heads != width:
        fixed["attention_inner_dim"] = head_dim * heads
    groups = heads if found.get("num_key_value_heads", 0) is None else given.get("num_key_value_heads", heads)
    if heads % groups:
        raise UserError(f"{path}: num_key_value_heads: {groups} does not divide num_attention_heads, {heads}")
    if groups != heads:
        shared = {"attention_module": "multiquery_attention", "extra_attention_params": {"num_kv_groups": groups}}
        fixed |= shared
    notes = _limit_to_window(given, found, kind, path)
    return _finish(given, schemas.LATER_KEYS, fixed, LLAMA, path)._replace(notes=notes)


def _limit_to_window(given: dict[str, Any], found: Mapping[str, Any], kind: str, path: str) -> tuple[str, ...]:
    """Cut the context to the sliding window, within which attention is whole, and say so."""
    if other := set(given.get("layer_types", ())) - {"full_attention", "sliding_attention"}:
        raise UserError(f"{path}: layer_types: {sorted(other)[0][:40]!a} is no attention of this trainer's")
    default = 4096 if kind == "mistral" else None  # transformers'; there null switches it off
    slides = kind == "mistral" or kind == "qwen2" and given.get("use_sliding_window", False)
    window = found.get("sliding_window", default) if slides else None
    longest = given["max_position_embeddings"]
    if window is None or window >= longest:
        return ()
    given["max_position_embeddings"] = window
    return (f"{path}: sliding_window: {window} is the context here, not {longest}: within it attention is whole",)


def _fill(
    found: Any, schema: type[schemas.ModelConfig], defaults: Mapping[str, Any], family: Family, path: str
) -> dict[str, Any]:
    """The values that are given, and the defaults of others.

    Raises:
        UserError: a value of another type, or quantized weights.
    """
    theirs = check_record(found, schema, path, f"is not the config.json of a {family.architecture}")
    if theirs.quantization_config is not None:
        raise UserError(f"{path}: quantization_config: quantized weights cannot be imported; those they came from can")
    return {**defaults, **{k: v for k in schema.model_fields if (v := getattr(theirs, k)) is not None}}


def _require_whole_heads(path: str, key: str, heads: int, width_key: str, width: int) -> int:
    """The width of a head."""
    if width % heads:
        raise UserError(f"{path}: {key}: {heads} does not divide {width_key}, {width}")
    return width // heads


def _read_rope(given: Mapping[str, Any], theta: float, share: float, path: str) -> tuple[dict[str, Any], float]:
    """Our keys of rotary positions, and the rotated share of a head.

    Raises:
        UserError: positions are scaled in a way that this trainer does not have.
    """
    section: dict[str, Any] = {"position_embedding_type": "rotary"}
    for key in ("rope_parameters", "rope_scaling"):
        if (rope := given.get(key)) is None:
            continue
        kind = rope.rope_type or rope.type or "default"
        if kind not in ("default", "linear", "llama3"):
            raise UserError(f"{path}: {key}: {kind[:40]!a} scaling of positions; this trainer has linear and llama3")
        if kind != "default":
            if rope.factor is None or rope.factor <= 0:
                raise UserError(f"{path}: {key}: factor: {kind} scaling takes a number above 0")
            section |= {"pos_scaling_factor": rope.factor, "pos_scaling_type": kind}
        if kind == "llama3":
            section["pos_scaling_extra_args"] = {
                "low_freq_factor": rope.low_freq_factor, "high_freq_factor": rope.high_freq_factor,
                "original_max_position_embeddings": rope.original_max_position_embeddings
                or given["max_position_embeddings"],
            }  # fmt: skip
            if lacking := next((k for k, v in section["pos_scaling_extra_args"].items() if v is None), None):
                raise UserError(f"{path}: {key}: {lacking}: llama3 scaling takes a number above 0")
        theta, share = rope.rope_theta or theta, rope.partial_rotary_factor or share
    return {**section, "rope_theta": theta}, share


def _finish(
    given: Mapping[str, Any], keys: Mapping[str, str], fixed: Mapping[str, Any], family: Family, path: str
) -> Found:
    """The section, once the schema takes it."""
    section = {**{ours: given[theirs] for theirs, ours in keys.items() if theirs in given}, **fixed}
    section = {"name": section.pop("name"), **section}
    named = {ours: theirs for theirs, ours in keys.items() if theirs in given}
    check_section(section, named, family.architecture, path)
    return Found(family, section)


def check_section(section: dict[str, Any], named: Mapping[str, str], architecture: str, path: str) -> None:
    """Refuse a model section that the schema does not take.

    Args:
        named: keys of a config.json (`path`) by ours, which errors name.
    """
    try:
        GPTConfig.model_validate(section)
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        key = ".".join(named.get(str(part), str(part)) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        where = f"{path}: {key}" if key else path
        raise UserError(f"{where}: {reason}; this trainer has no such {architecture}") from None
