"""What a lowered training step holds, read from its MLIR, and which op, module and config key made one fail."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from torch import nn

from modelzoo.config.errors import UserError
from modelzoo.names import HEAD_WEIGHT, WORDS_WEIGHT, is_mask, name_weight

_TORCH_OP = re.compile(r"torch\.aten\.([\w.]+)")
_CIRH_OP = re.compile(r"\bcirh\.(\w+)")
_STATE = re.compile(r'%arg\d+: tensor<((?:\d+x)*+)(\w+)> \{[^{}]*tf\.resource_name = "state\.([^"]+)"')
_OP = re.compile(r"aten::([\w.]+)|torch\.aten\.([\w.]+)")
_MODULE = re.compile(r'loc\("([\w.]+?)(?:\.call\d+)?\.(fwd|bwd)/')

# What decides the ops of a part of the step: by module name, or by the function that was at work.
KEYS = (
    (r"\bdrop", "trainer.init.model.dropout_rate"),
    (r"ffn\.ffn", "trainer.init.model.nonlinearity"),
    (r"norm\d|ln_f", "trainer.init.model.norm_type"),
    (r"self_attn", "trainer.init.model.attention_type or position_embedding_type"),
    (r"embedding", "trainer.init.model.position_embedding_type"),
    (r"lm_head", "trainer.init.model.share_embedding_weights"),
    (r"sparsify|/sparse/", "trainer.init.sparsity"),
    (r"schedulers\b|scheduler\.py", "trainer.init.schedulers"),
    (r"clip_grad", "trainer.init.precision.max_gradient_norm"),
    (r"grad_scaler", "trainer.init.precision"),
    (r"csx/parts\.py optimizer|/optim/", "trainer.init.optimizer"),
)


class Lowered(NamedTuple):
    """One training step as lowered."""

    torch_ops: Counter
    cirh_ops: Counter
    states: dict[str, tuple[int, ...]]  # shape of each tensor that lives on the wafer, by name

    def weights(self, names: Iterable[str]) -> int:
        """How many weights those of the named parameters hold that live on the wafer."""
        wanted = set(names)
        if WORDS_WEIGHT in wanted:
            wanted.add(HEAD_WEIGHT)  # one tensor if tied, and it goes by its last name there
        return sum(math.prod(self.states.get(f"model.{n}", (0,))) for n in wanted)

    @property
    def masked(self) -> list[str]:
        """Names of the weights that have a mask on the wafer."""
        return [name_weight(n.removeprefix("model.")) for n in self.states if is_mask(n)]


def read(folder: str) -> Lowered:
    """What `torch.mlir` and `cirh.mlir` of an executor's folder hold."""
    torch_text, cirh_text = (
        Path(folder, f"{n}.mlir").read_text(encoding="utf-8", errors="replace") for n in ("torch", "cirh")
    )
    states = {name: tuple(int(d) for d in dims.split("x") if d) for dims, _, name in _STATE.findall(cirh_text)}
    return Lowered(Counter(_TORCH_OP.findall(torch_text)), Counter(_CIRH_OP.findall(cirh_text)), states)


def describe_lowering(
    found: Lowered, folder: str, seconds: float, names: Iterable[str], live: Mapping[str, int]
) -> str:
    """What a person reads of a lowered step.

    Args:
        names: the model's parameters.
        live: live weights of each sparse parameter, by name, at step 0.
    """
    total = found.weights(names)
    lines = [
        f"lowered    one training step in {seconds:.1f} s: {sum(found.torch_ops.values()):,} torch ops of "
        f"{len(found.torch_ops)} kinds to {sum(found.cirh_ops.values()):,} CIRH ops of {len(found.cirh_ops)} kinds",
        f"           most: {', '.join(f'{n} {op}' for op, n in found.cirh_ops.most_common(6))}",
        f"parameters {total:,} in {len(found.states)} tensors of state with the optimizer's",
    ]
    if live:
        sparse = found.weights(live)
        lines.append(
            f"live       {total - sparse + sum(live.values()):,}: {sum(live.values()):,} of {sparse:,} weights under "
            f"{len(found.masked)} masks"
        )
    lines.append(f"files      {Path(folder, 'torch.mlir')}, {Path(folder, 'cirh.mlir')}")
    return "\n".join(lines)


def explain_failure(error: BaseException, model: nn.Module | None) -> UserError:
    """The message for a step that could not be built or traced: op, module, and the config key to change."""
    message = next((x for x in str(error).splitlines() if x.strip()), type(error).__name__).strip()
    names = {id(m): n for n, m in model.named_modules() if n} if model is not None else {}
    module, trail, at = None, [], error.__traceback__
    while at is not None:
        code = at.tb_frame.f_code
        module = names.get(id(at.tb_frame.f_locals.get("self")), module)
        trail.append(f"{code.co_filename} {code.co_name}")
        at = at.tb_next
    return _message(message, module, " ".join(trail), None)


def check(folder: str) -> None:
    """Whether the step in `folder` was lowered: the client library says nothing where it was not.

    Raises:
        UserError: names the op, module and config key.
    """
    if Path(folder, "cirh.mlir").stat().st_size:
        return
    found = sorted(Path(folder).glob("traceback_*.json"))
    if not found:
        raise UserError(f"CSX: the training step does not lower, and no reason was given; see {folder}/torch.mlir")
    diagnosis = json.loads(found[-1].read_text(encoding="utf-8"))
    notes = " ".join(n.get("message", "") for n in diagnosis.get("compileMetadata", {}).get("notes", []))
    module = _MODULE.search(notes)
    frames = [f for f in diagnosis.get("traceback", []) if f["filename"].startswith("modelzoo/models")]
    where = f"{frames[-1]['filename']}:{frames[-1]['line']}" if frames else None
    trail = " ".join(f"{f['filename']} {f['function']}" for f in diagnosis.get("traceback", []))
    name = module.group(1) if module else None
    raise _message(
        diagnosis.get("message", ""), "model" if name and name.startswith("GPTModel") else name, trail, where
    )


def _message(message: str, module: str | None, trail: str, where: str | None) -> UserError:
    op = _OP.search(message)
    key = next((key for sign, key in KEYS if re.search(sign, module or "")), None) or next(
        (key for sign, key in KEYS if re.search(sign, trail)), "trainer.init.model"
    )
    what = f"the CS-2 does not have {op.group(1) or op.group(2)}" if op else "the training step does not lower"
    return UserError(
        f"CSX: {what}, in {module or 'the step'}{f' ({where})' if where else ''}: {message[:300]}\nlook at {key}"
    )
