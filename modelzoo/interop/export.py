"""`run.py export`: a checkpoint as a Hugging Face folder, as GGUF, as ONNX, or as Model Zoo's `.mdl`."""

import json
import os
import shlex
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field

from modelzoo.checksums import write_checksums
from modelzoo.config.errors import UserError
from modelzoo.config.load import load
from modelzoo.config.model import GPTConfig
from modelzoo.config.trainer import Config
from modelzoo.data import format as f
from modelzoo.data.tokenizer import check_vocabulary
from modelzoo.data.tokenizer_files import copy_files
from modelzoo.files import making_folder, write_text
from modelzoo.interop import adapters, gguf_file, hf, hf_config, mdl, mdl_state, onnx_folder
from modelzoo.interop.exportable import Exportable, find_config_beside, note_unread, read_exportable, require_finite
from modelzoo.interop.markdown import escape
from modelzoo.interop.model_card import render_card
from modelzoo.interop.tensors import write_tensors
from modelzoo.names import is_mask
from modelzoo.planning.start_checkpoint import check_state, find_checkpoint
from modelzoo.reading import exists
from modelzoo.records import Record, read_record
from modelzoo.training import checkpoint
from modelzoo.training.run_folder import RunFolder

MASKS = "masks.safetensors"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ENDINGS = {"gguf": ".gguf", "mdl": ".mdl"}  # of the formats that are a file; the others are a folder


class _Added(Record):
    id: Annotated[int, Field(ge=0, lt=2**31)]
    content: str


class _Vocabulary(Record):
    vocab: Annotated[dict[str, Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]


class _Tokenizer(Record):
    """What is read here of a tokenizer.json."""

    model: _Vocabulary
    added_tokens: list[_Added] | None = None


def export(
    source: str,
    out: str,
    params: str | None = None,
    tokenizer: str | None = None,
    dtype: str = "float32",
    form: str | None = None,
) -> str:
    """Write the checkpoint `source` (a step folder, or a run folder: its newest) as `out`.

    Args:
        out: a folder to make, or a file name that ends in .mdl or .gguf.
        params: the run's config; default: config.yaml of the run folder.
        tokenizer: a tokenizer.json or a folder with one; default: the training data's.
        dtype: of the weights.
        form: hf, gguf, onnx or mdl; default: what `out` ends in, else hf.

    Returns:
        What was written, as text for the user.

    Raises:
        UserError: no whole checkpoint, a model that the format cannot express, or `out` exists.
    """
    form = _choose_format(out, dtype, form)
    path = find_checkpoint(source)
    if exists(out):
        raise UserError(f"{out}: exists; give another name, or remove it first")
    config_file = params or find_config_beside(path)
    if form == "mdl":
        return _mdl(path, out, config_file)
    found = read_exportable(path, config_file, tokenizer)
    if form == "gguf":
        return gguf_file.write_gguf(found, out, dtype)
    if form == "onnx":
        return onnx_folder.write_onnx(found, out)
    return _folder(found, out, dtype)


def _choose_format(out: str, dtype: str, form: str | None) -> str:
    by_name = next((f for f, ending in ENDINGS.items() if out.endswith(ending)), None)
    chosen = form or by_name or "hf"
    if chosen != (by_name or chosen) or chosen in ENDINGS and by_name is None:
        wanted = f"a name that ends in {ENDINGS[chosen]}" if chosen in ENDINGS else "the name of a folder"
        raise UserError(f"--format {chosen}: {out} is to be {wanted}")
    if dtype == "q8_0" and chosen != "gguf":
        raise UserError("--dtype q8_0: is GGUF's alone; name OUT something that ends in .gguf")
    if dtype != "float32" and chosen in ("onnx", "mdl"):
        raise UserError(f"--dtype {dtype}: {chosen} is written in float32")
    return chosen


def _folder(found: Exportable, out: str, dtype: str) -> str:
    """The folder that transformers, lm-eval and PEFT load."""
    c, eos, words = found.model, found.eos, found.words
    family = hf_config.choose_family(c)
    adapter, weights, masks, notes = adapters.split_adapter(found.weights, found.masks, found.saved, family, out)
    tensors = {n: x.to(DTYPES[dtype]) for n, x in hf.convert_to_hf(hf.fold_scales(weights, c), c, family).items()}
    require_finite(tensors, dtype, out)
    texts = {
        "config.json": {**hf_config.make_config_json(c, family, eos), "torch_dtype": dtype, "dtype": dtype},
        "generation_config.json": {
            "bos_token_id": hf_config.choose_bos(c, eos),
            "eos_token_id": eos,
            "pad_token_id": eos,
        },
    }
    if f.TOKENIZER in {os.path.basename(v) for v in words}:
        texts["tokenizer_config.json"] = _tokenizer_config(words[0], eos, c)
    name = os.path.basename(os.path.abspath(out))
    run = RunFolder.containing(found.path).path
    readme = render_card(name, family.architecture, found.config, found.state, masks, run, note_unread)
    if notes:
        readme += "\n## Adapter\n\n" + "".join(f"{escape(line, 2000)}\n" for line in notes)
    other = hf.convert_to_hf(masks, c, family, masks=True) if masks else {}
    _write(out, tensors, other, texts, readme, words, c.bos_token_id, adapter)
    lines = [
        f"wrote      {out}: {family.architecture}, {sum(x.numel() for x in tensors.values()):,} numbers in {dtype}"
    ]
    lines.append(f"           {', '.join(sorted(os.listdir(out)))}")
    lines += [f"           {line}" for line in notes]
    if not words:
        lines.append("           no tokenizer: the training data's folder has none here; name one with --tokenizer")
    lines.append(f"next       transformers.AutoModelForCausalLM.from_pretrained({json.dumps(out, ensure_ascii=False)})")
    return "\n".join(lines)


def _mdl(path: str, out: str, config_file: str | None) -> str:
    if config_file is None:
        raise UserError(
            f"{path}: has no config.yaml in its run's folder; name the run's config with -p (the optimizer's settings)"
        )
    init = load(config_file, Config).trainer.init
    files, state = checkpoint.load(path)
    saved = check_state(state, path)
    if init.optimizer is None or init.optimizer.name != saved.optimizer:
        raise UserError(f"{config_file}: trainer.init.optimizer: the checkpoint holds {saved.optimizer} state")
    mdl.write(out, mdl_state.convert_to_zoo(files, state, init))
    masks = sum(map(is_mask, files["model"]))
    lines = [
        f"wrote      {out}: step {saved.global_step}, {len(files['model']) - masks} weights, {masks} masks, "
        "optimizer state"
    ]
    if any(g.mup_base_density is not None for g in init.sparsity):
        lines.append(f"           mup_base_density's learning-rate factors stay in {config_file}; Model Zoo has none")
    lines.append(f"next       in Model Zoo ckpt_path: {out}")
    lines.append(f"           here {shlex.join(['python', 'run.py', 'import', out, 'RUN', '-p', config_file])}")
    return "\n".join(lines)


def _tokenizer_config(path: str, eos: int | None, c: GPTConfig) -> dict[str, Any]:
    found = read_record(path, _Tokenizer, "missing", "is not a byte-level tokenizer.json")
    ids = {**found.model.vocab, **{t.content: t.id for t in found.added_tokens or ()}}
    check_vocabulary(path, max(ids.values()) + 1, c.vocab_size)
    named = (eos, hf_config.choose_bos(c, eos))
    text, first = (next((t for t, i in ids.items() if i == wanted), None) for wanted in named)
    special = {"eos_token": text, "bos_token": first, "pad_token": text}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": c.max_position_embeddings,
        "clean_up_tokenization_spaces": False,
        **{k: v for k, v in special.items() if v},
    }


def _write(
    out: str,
    tensors,
    masks,
    texts: Mapping[str, Any],
    readme: str,
    words: list[str],
    bos: int | None,
    adapter=None,
) -> None:
    """The whole folder or nothing."""
    try:
        with making_folder(out) as temporary:
            write_tensors(os.path.join(temporary, "model.safetensors"), tensors)
            if masks:
                write_tensors(os.path.join(temporary, MASKS), masks)
            for name, content in texts.items():
                write_text(os.path.join(temporary, name), json.dumps(content, indent=2) + "\n")
            write_text(os.path.join(temporary, "README.md"), readme)
            if adapter is not None:
                (config, weights), (facts, parts) = adapter
                inner = os.path.join(temporary, adapters.FOLDER)
                os.makedirs(inner)
                write_text(os.path.join(inner, config), json.dumps(facts, indent=2) + "\n")
                write_tensors(os.path.join(inner, weights), parts)
                write_checksums(inner)
            copy_files(words, temporary, bos)
            write_checksums(temporary)
    except OSError as e:
        raise UserError(f"{out}: not written ({e.strerror or e}); nothing of it was kept") from None
