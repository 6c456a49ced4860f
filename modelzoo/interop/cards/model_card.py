"""The model card (README.md) of an exported model: what it is, how sparse, what it cost, and what it is not for."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from modelzoo.config.errors import UserError
from modelzoo.config.trainer import Config
from modelzoo.data import manifest
from modelzoo.interop.cards.header import describe, render_header
from modelzoo.interop.cards.markdown import escape
from modelzoo.interop.cards.origin import Origin, trace_origin
from modelzoo.interop.cards.provenance import Note, describe_provenance
from modelzoo.models.shapes import frozen, list_parameters, list_with_adapters
from modelzoo.planning.plan_text import describe_heads
from modelzoo.planning.stored import group_sizes
from modelzoo.progress import format_amount
from modelzoo.redact import redact_text
from modelzoo.sparsity import flops
from modelzoo.sparsity.schedules import value
from modelzoo.training.runs.length import total_steps


class Form(NamedTuple):
    """What a card says of its format: the Hub's name of the library, where weights are, and how to use them."""

    library: str
    weights: str
    use: str


TRANSFORMERS = Form(
    "transformers",
    "`model.safetensors` holds masked weights as zeros.",
    """## Use

```python
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("this-folder")
```

The logits equal the trainer's; scalars that the architecture has no place for are multiplied into the weights.
""",
)
ONNX = Form(
    "onnx",
    "`model.onnx` holds masked weights as zeros.",
    """## Use

```python
import numpy, onnxruntime, tokenizers
model = onnxruntime.InferenceSession("this-folder/model.onnx")
ids = tokenizers.Tokenizer.from_file("this-folder/tokenizer.json").encode("Aspirin lowers").ids
(logits,) = model.run(None, {"input_ids": numpy.array([ids])})  # [batch, sequence, vocabulary], float32
```

Any batch and any sequence up to the context. The logits equal the trainer's. There is no cache: a token costs a pass.
""",
)
_CLOSING = """## Limits

What the training text does not say, the model does not know; what it says wrongly, the model repeats. Abstracts and
articles over-represent some populations, journals and languages. Before any use, evaluate on your own task and data.

## Privacy and transparency

The training text is published literature. It names authors and, in case reports, describes patients as published; a
model of this kind can repeat passages of it word for word. No record of patients beyond the literature was used. What
is on record of data, commands, seeds and scores is above; what is not is named as missing, not guessed.
"""


def render_card(
    name: str,
    architecture: str,
    config: Config,
    state: Mapping[str, Any],
    masks: Mapping[str, Tensor],
    run: str | None = None,
    note: Note = lambda line: None,
    form: Form = TRANSFORMERS,
) -> str:
    """Markdown with Hugging Face's YAML header.

    Args:
        config: the run's config (model and sparsity at least).
        state: the checkpoint's JSON state.
        masks: bool masks by the names of our weights; their counts are what the card states.
        run: the run's folder, which records data, commands and scores.
        note: is called with a line about each of these records that cannot be read.
        form: the format that the card is in.
    """
    facts = _count_facts(config, masks)
    context = facts.context
    sparsity = [f"- {line}" for line in _recipe(config)] or ["- dense: no masks"]
    rows = _list_rows(architecture, config, state, masks, facts)
    tags = ["biomedical", *["sparse"] * bool(masks), "mediswift"]
    origin = _trace(config, run, note)
    header = render_header(describe(form.library, tags, origin.name if origin else None))
    of = f"whose weights began as those of {escape(origin.describe())}, {_how_far(state)}" if origin else "trained"
    table = "\n".join(["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows)])
    return f"""{header}
# {escape(name)}

A GPT for biomedical text, {of} by the MediSwift trainer (sparse pre-training after arXiv 2403.00952).

> **Not for clinical use.** This is a research model. It invents facts, doses and citations, it has not been evaluated
> for safety, and nothing it writes is medical advice. Do not use it for diagnosis, treatment, triage or any decision
> about a patient, and do not show its output to patients.

{table}

FLOPs are counted (forward and backward, at {context} tokens of context; updates of masks not included), not measured:
on hardware without support for unstructured sparsity a masked weight is a stored zero and saves no time.

## Sparsity recipe

{chr(10).join(sparsity)}

{form.weights} {_side_file(masks, form)}

{chr(10).join(describe_provenance(config, run, note))}

{form.use}
{_CLOSING}"""


def _trace(config: Config, run: str | None, note: Note) -> Origin | None:
    section = config.trainer.finetune
    try:
        return trace_origin(run, section.checkpoint if section is not None else None)
    except UserError as e:
        note(redact_text(str(e)))
        return None


def _how_far(state: Mapping[str, Any]) -> str:
    """What was done with weights that came from elsewhere."""
    return "trained on" if state.get("global_step") else "imported"


class Facts(NamedTuple):
    """What is counted of a model: parameters, and training FLOPs a token."""

    total: int  # parameters
    live: dict[str, int]  # parameters that a mask leaves on, by name
    covered: int  # weights under masks
    context: int  # tokens
    dense: float  # FLOPs a token, dense-equivalent
    sparse: float  # FLOPs a token


def _count_facts(config: Config, masks: Mapping[str, Tensor]) -> Facts:
    init, context = config.trainer.init, manifest.find_context(config)
    shapes = list_parameters(init.model)
    live = {n: int(masks[n].sum()) if n in masks else s.numel for n, s in shapes.items()}
    cost = lambda counts: (
        flops.count_per_token(init.model, list_with_adapters(init), context, counts, frozen(init)).total
    )
    total, covered = sum(s.numel for s in shapes.values()), sum(shapes[n].numel for n in masks)
    return Facts(total, live, covered, context, cost({}), cost(live))


def _list_rows(
    architecture: str, config: Config, state: Mapping[str, Any], masks: Mapping[str, Tensor], facts: Facts
) -> list[tuple[str, str]]:
    """The card's table: what it names, and its value."""
    m, dense, sparse, covered = config.trainer.init.model, facts.dense, facts.sparse, facts.covered
    tokens, step = state.get("tokens") or 0, state.get("global_step") or 0
    rows = [
        ("Architecture", f"{architecture}: {m.num_hidden_layers} layers x {m.hidden_size}, {describe_heads(m)}, "
                         f"ffn {m.filter_size}, {m.position_embedding_type or 'no'} positions"),
        ("Vocabulary, context", f"{m.vocab_size}, {m.max_position_embeddings} tokens"),
        ("Parameters in all", f"{facts.total:,}"),
        ("Parameters live (non-zero by mask)", f"{sum(facts.live.values()):,}"),
        ("Weights under masks", f"{covered:,}" + (f", {1 - sum(facts.live[n] for n in masks) / covered:.2%} of them off"
                                                  if covered else "")),
        ("Training FLOPs a token, dense-equivalent", f"{dense:.4g}"),
        ("Training FLOPs a token, sparse", f"{sparse:.4g} ({dense / sparse:.3f}x fewer)"),
        ("Trained", f"{step:,} steps, {tokens:,} tokens"),
    ]  # fmt: skip
    if tokens:
        as_run, whole = state.get("flops") or (sparse * tokens, dense * tokens)
        rows.append(("Training FLOPs in all", f"dense-equivalent {whole:.4g}, sparse {as_run:.4g}"))
    return rows


def _side_file(masks: Mapping[str, Tensor], form: Form) -> str:
    if not masks:
        return "There are no masks."
    if form is not TRANSFORMERS:
        return "The masks themselves are not in it."
    return (
        "`masks.safetensors` holds the masks (bool, under the names and in the layout of the weights):\n"
        "zero what a mask says is off after each update to keep the model sparse in further training."
    )


def _recipe(config: Config) -> list[str]:
    lines = []
    steps = total_steps(config)
    for group, sizes in group_sizes(config.trainer.init):
        begin = value(group.sparsity, 0, group.update)
        line = f"{group.algorithm}, sparsity {begin:.4g}, {group.init_method} masks, {group.distribution}"
        line += f", {group.pattern}" if group.pattern else ""
        line += f", {len(sizes)} weights ({format_amount(sum(math.prod(s) for s in sizes.values()))} parameters)"
        if group.update is not None:
            u = group.update
            line += f"; masks change at steps {list(u.steps)}" if u.steps else (
                f"; masks change every {u.freq or 1} steps from {u.start}" + (f" to {u.stop}" if u.stop else "")
            )  # fmt: skip
        if group.drop_fraction is not None:
            line += f"; drop_fraction {group.drop_fraction.model_dump(exclude_none=True)}"
        lines.append(line + (f" (of {steps:,} steps)" if steps else ""))
    return lines
