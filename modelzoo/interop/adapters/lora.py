"""LoRA's files over the exported Hugging Face model: PEFT's LORA.

Where an architecture packs queries, keys and values into one module, their updates are combined: A's one above the
other, B's in blocks, the rank their sum.
"""

import math
import re
from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from modelzoo.adapter_files import NO_ADAPTER
from modelzoo.config.errors import UserError
from modelzoo.config.sections.adapters import LoRA
from modelzoo.config.sections.model import GPTConfig
from modelzoo.interop.adapters.folder import Count, Files, read_adapter, require_kind
from modelzoo.interop.adapters.targets import check_targets
from modelzoo.interop.hf.families import LAYER, LINEAR, QKV, Family
from modelzoo.interop.hf.tensors import convert_to_hf, query_scales
from modelzoo.names import LORA_A, LORA_B
from modelzoo.records import Record, check_record

INSIDE = "base_model.model."
Alpha = Annotated[float, Field(gt=0, lt=1e9)]


class _LoRA(Record):
    """What is read of PEFT's LORA."""

    r: Count
    lora_alpha: Alpha
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    bias: str = "none"
    use_rslora: bool | None = None
    target_modules: str | list[str] | None = None
    exclude_modules: str | list[str] | None = None
    layers_to_transform: int | list[int] | None = None
    rank_pattern: dict[str, Count] | None = None
    alpha_pattern: dict[str, Alpha] | None = None


@torch.no_grad()
def make_lora_files(weights: Mapping[str, Tensor], section: LoRA, c: GPTConfig, family: Family, base: str) -> Files:
    """LoRA's matrices among our `weights` (by name) as PEFT's LORA over the exported model."""
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for module, parts in _modules(c, family).items():
        held = {p: scale for p, scale in parts.items() if p + LORA_A in weights}
        if not held:
            continue
        a = torch.cat([weights[p + LORA_A].float() for p in held])  # [rank, in], the rank being that of all parts
        rows = []
        for p in parts:  # B [out, rank]: a block of rows for each part, of columns for each of those held
            out = next(weights[q + LORA_B].shape[0] for q in held)
            blocks = [weights[p + LORA_B].float() * held[p] if p == q else torch.zeros(out, section.r) for q in held]
            rows.append(torch.cat(blocks, 1))
        tensors[f"{INSIDE}{module}{LORA_A}.weight"] = a
        order = _order(list(parts), module, len(rows[0]), c, family)
        tensors[f"{INSIDE}{module}{LORA_B}.weight"] = torch.cat(rows)[order]
        if len(a) != section.r:
            ranks[module] = len(a)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": section.r,
        "lora_alpha": section.alpha,
        "lora_dropout": section.dropout,
        "bias": "none",
        "fan_in_fan_out": family.transposed,
        "target_modules": sorted({n.removeprefix(INSIDE).rpartition(".lora_")[0] for n in tensors}),
        "rank_pattern": ranks,
        "alpha_pattern": {n: section.scale * rank for n, rank in ranks.items()},  # alpha / rank as everywhere
    }, tensors


@torch.no_grad()
def read_lora(folder: str, c: GPTConfig, family: Family) -> tuple[LoRA, dict[str, Tensor]]:
    """A LORA of PEFT's, over an exported model of `family`, as our section and matrices by name.

    Where ranks or scales differ, the largest rank and the first scale hold: A and B are filled up with zeros, B scaled.

    Raises:
        UserError: no such files, another kind of adapter, or options and modules that have no place here.
    """
    raw, tensors, path = read_adapter(folder)
    require_kind(raw, "LORA", path)
    for key in ("use_dora", "lora_bias", "modules_to_save", "layer_replication", "trainable_token_indices"):
        if raw.get(key):
            raise UserError(f"{path}: {key} has no place here; plain LoRA only")
    config = check_record(raw, _LoRA, path, NO_ADAPTER)
    if config.bias != "none":
        raise UserError(f"{path}: bias: {config.bias[:40]!a} has no place here; plain LoRA only")
    alphas = _compile_patterns(config.alpha_pattern, path)
    left, found, scales, held = dict(tensors), {}, {}, set()
    modules = _modules(c, family)
    for module, parts in modules.items():
        a = left.pop(f"{INSIDE}{module}{LORA_A}.weight", None)
        b = left.pop(f"{INSIDE}{module}{LORA_B}.weight", None)
        if a is None or b is None:
            if a is not None or b is not None:
                raise UserError(f"{folder}: {INSIDE}{module}: holds one of LoRA's two matrices alone")
            continue
        _check_matrices(folder, module, a, b, len(parts))
        held.add(module)
        rows = torch.empty_like(b, dtype=torch.float32)
        rows[_order(list(parts), module, len(b) // len(parts), c, family)] = b.float()
        alpha = next((v for p, v in alphas if p.match(module)), config.lora_alpha)
        for (p, q_scale), part in zip(parts.items(), rows.chunk(len(parts)), strict=True):
            mine = part.any(0) | ~rows.any(0)  # ranks that act on other parts alone are none of this one's
            if mine.any():
                found[p] = a.float()[mine], part[:, mine] / q_scale
                scales[p] = alpha / (math.sqrt(len(a)) if config.use_rslora else len(a))
    if left or not found:
        what = sorted(left)[0] if left else "no LoRA matrix"
        raise UserError(f"{folder}: holds {what}, which is nothing of a {family.architecture} with these sizes")
    check_targets(path, config.target_modules, config.exclude_modules, config.layers_to_transform, held, modules)
    r, scale = max(len(a) for a, _ in found.values()), next(iter(scales.values()))
    out = {}
    for p, (a, b) in found.items():
        out[p + LORA_A] = torch.nn.functional.pad(a, (0, 0, 0, r - len(a)))
        out[p + LORA_B] = torch.nn.functional.pad(b * (scales[p] / scale), (0, r - b.shape[1]))
    dropout = config.lora_dropout or 0.0
    return LoRA(r=r, alpha=scale * r, dropout=dropout, target_modules=tuple(sorted(found))), out


def _check_matrices(folder: str, module: str, a: Tensor, b: Tensor, parts: int) -> None:
    """Refuse matrices that are no A [rank, in] and B [out, rank] of a module of `parts` parts."""
    fits = a.dim() == b.dim() == 2 and 0 < len(a) == b.shape[1] and len(b) % parts == 0 and len(b) > 0
    if not fits:
        raise UserError(
            f"{folder}: {INSIDE}{module}: holds lora_A {list(a.shape)} and lora_B {list(b.shape)}, which do not fit"
        )


def _modules(c: GPTConfig, family: Family) -> dict[str, dict[str, float]]:
    """Their linear modules by name, each with those of ours that it holds and `fold_scales`' factor of these."""
    found: dict[str, dict[str, float]] = {}
    for i, scale in enumerate(query_scales(c)):
        ours, theirs = LAYER.format(i), family.layer.format(i)
        if family.packed:
            found[theirs + family.packed[0]] = {ours + p: scale if p == QKV[0] else 1.0 for p in QKV}
        for name, other in family.within.items():
            if name in LINEAR:
                found[theirs + other] = {ours + name: scale if name == QKV[0] else 1.0}
    return found


def _order(parts: list[str], module: str, out: int, c: GPTConfig, family: Family) -> Tensor:
    """For each row of their `module`, the row of our parts' weights one above the other that it holds.

    `hf.tensors.convert_to_hf` moves numbered rows to where it moves those of weights.
    """
    numbers = torch.arange(len(parts) * out).unsqueeze(1).chunk(len(parts))
    moved = convert_to_hf({f"{p}.weight": rows for p, rows in zip(parts, numbers, strict=True)}, c, family, masks=True)
    return moved[f"{module}.weight"].flatten()


def _compile_patterns(patterns: Mapping[str, float] | None, path: str) -> list[tuple[re.Pattern, float]]:
    """PEFT's rule for rank_pattern and alpha_pattern: the first that matches the end of the module's name.

    They are regular expressions of whoever made the file. Those that could take for ever are refused: groups, and more
    than two repetitions.
    """
    found = []
    for text, value in (patterns or {}).items():
        where = f"{path}: alpha_pattern: {text[:60]!a}"
        if len(text) > 200 or len(re.findall(r"[*+?{]", text)) > 2 or re.search(r"[()]", text):
            raise UserError(f"{where}: is too intricate a pattern; name the modules one by one")
        try:
            found.append((re.compile(rf"(.*\.)?({text})$"), value))
        except re.error as e:
            raise UserError(f"{where}: is no regular expression ({e})") from None
    return found
