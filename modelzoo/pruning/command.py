"""`run.py prune`: a dense run's checkpoint as a new run's, pruned in one shot into masks that training goes on with."""

import copy
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from modelzoo import version
from modelzoo.backends.select import Choice
from modelzoo.config.errors import UserError
from modelzoo.config.sections.dataloader import DataLoader
from modelzoo.config.trainer import Config
from modelzoo.data import format as f
from modelzoo.data.feed import iterate_validation
from modelzoo.data.hdf5 import Shards
from modelzoo.data.tokenizer import read_tokenizer
from modelzoo.data.tokenizer_files import tokenizer_in
from modelzoo.files import sha256
from modelzoo.finite import are_finite
from modelzoo.generation.load import build_model, choose_device
from modelzoo.lock import lock_folder
from modelzoo.models.gpt import GPTModel
from modelzoo.models.shapes import list_parameters
from modelzoo.names import layer_of, name_mask
from modelzoo.progress import Progress, format_amount
from modelzoo.pruning import source
from modelzoo.pruning.calibration import draw_examples, read_rows
from modelzoo.pruning.choose import Plan
from modelzoo.pruning.prune import Pruned, prune_by_magnitude, prune_model
from modelzoo.pruning.unfinished import SUFFIX, Unfinished
from modelzoo.records import hash_value
from modelzoo.training.build import open_shards
from modelzoo.training.checkpoints import checkpoint
from modelzoo.training.checkpoints.snapshot import ORDERS
from modelzoo.training.checkpoints.state_json import CheckpointState
from modelzoo.training.runs.folder import RunFolder
from modelzoo.training.runs.new import require_empty, write_run
from modelzoo.training.validation import Score, make_score

REPORT = "pruning.json"  # in the run's folder


class Request(NamedTuple):
    """What the command line asks for.

    Attributes:
        flags: keys of a sparsity group, those that were given.
        data, validate: folders of shards: for calibration, and for perplexity before and after.
        compare: prune by magnitude too, and say what comes of that.
        size: examples at a time.
    """

    run: str
    out: str
    method: str
    flags: Mapping[str, Any]
    data: Sequence[str] = ()
    samples: int = 128
    validate: Sequence[str] = ()
    compare: bool = False
    params: str | None = None
    seed: int = 0
    damping: float = 0.01
    size: int = 8
    target: str = "auto"


def prune_run(request: Request) -> str:
    """Write a run folder with the pruned weights, their masks and the config to go on with; returns what to print.

    Nothing is at `out` until all of it is. Layers that are done are next to it until then (`unfinished`).

    Raises:
        UserError: what the run, the data or the sparsity asked for do not allow, by name; or `out` holds something.
    """
    require_empty(request.out)
    with lock_folder(unfinished := request.out.rstrip(os.sep) + SUFFIX):
        return _prune_alone(request, unfinished)


def _prune_alone(request: Request, unfinished: str) -> str:
    if request.method != "magnitude" and not request.data:
        raise UserError(f"--data: missing; {request.method} reads calibration text: name folders of HDF5 shards")
    if request.compare and request.method == "magnitude":
        raise UserError("--compare: sets magnitude next to another method; give --method wanda or sparsegpt")
    found = source.read_source(request.run, request.params)
    groups = source.choose_groups(found, request.flags, request.params)
    plans = source.make_plans(found.config, groups, request.method)
    config = source.make_config(found, groups, request.out, request.params)
    data = _open(found.config, request.data, request) if request.data else None
    validation = _open(found.config, request.validate, request) if request.validate else None
    if both := {os.path.realpath(d) for d in request.data} & {os.path.realpath(d) for d in request.validate}:
        text = "is calibrated on and validated on, so the losses after pruning are flattered"
        print(f"note       {min(both)} {text}", file=sys.stderr)
    choice = choose_device(request.target, found.config.trainer.init)
    print(f"checkpoint {found.path}\n{choice.describe()}", file=sys.stderr, flush=True)
    model = choice.backend.place(build_model(found.config.trainer.init, found.weights, found.path)).eval()
    other = copy.deepcopy(model) if request.compare and validation is not None else None
    scores = {"before": measure_loss(model, validation, choice)} if validation is not None else {}
    begin = time.perf_counter()
    pruned, about = _prune(model, plans, data, request, choice, found.path, unfinished)
    about["seconds"] = round(time.perf_counter() - begin, 1)
    if validation is not None:
        scores[request.method] = measure_loss(model, validation, choice)
        if other is not None:
            prune_by_magnitude(dict(other.named_parameters()), plans)
            scores["magnitude"] = measure_loss(other, validation, choice)
    path = _write(request, found, model, pruned, config, about, scores, unfinished)
    return _describe(request, path, config, pruned, about, scores)


def _open(config: Config, folders: Sequence[str], request: Request) -> Shards:
    fit = config.trainer.fit
    vsl = fit is not None and fit.train_dataloader.use_vsl
    loader = {"data_dir": list(folders), "batch_size": request.size, "use_vsl": vsl}
    return open_shards(config, DataLoader.model_validate(loader))


def _prune(
    model: GPTModel, plans: Sequence[Plan], data: Shards | None, request: Request, choice: Choice, path: str,
    unfinished: str,
) -> tuple[list[Pruned], dict[str, Any]]:  # fmt: skip
    """Prune in place; returns what became of each weight, in the order of `plans`, and facts about the calibration."""
    shapes, weights = list_parameters(model.model.config), dict(model.named_parameters())
    read = [p for p in plans if data is not None and source.is_read(p.name, shapes[p.name].kind)]
    found, about, rest = list[Pruned](), dict[str, Any](), [p for p in plans if p not in read]
    if data is not None and read:
        examples = draw_examples(data.total, request.samples, request.seed)
        device = choice.backend.device
        rows = read_rows(model.model, data, examples, request.size, device)
        about = {"examples": len(examples), "tokens": sum(part.tokens for part in rows), "seed": request.seed}
        done = Unfinished(unfinished, _identify(request, path, read, data, device))
        if count := sum(map(done.has, {layer_of(p.name) or 0 for p in read})):
            print(
                f"note       goes on from {unfinished}: {count} layer{'s' if count > 1 else ''} pruned already",
                file=sys.stderr,
            )
        try:
            found = prune_model(model, read, request.method, rows, request.damping, device, done)
        except UserError:  # the same command would end the same
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
    by_name = {p.name: p for p in (*found, *prune_by_magnitude(weights, rest))}
    if bad := next((n for n in by_name if not are_finite([weights[n]])), None):
        raise UserError(f"{bad}: is not finite after pruning; give a larger --damping")
    return [by_name[p.name] for p in plans], about


def _identify(request: Request, path: str, plans: Sequence[Plan], data: Shards, device: torch.device) -> dict[str, Any]:
    """All that decides a pruned weight's bits, by the words of the command line where they have some."""
    weights = [[p.name, p.size, p.block, p.live, p.group.model_dump(mode="json")] for p in plans]
    return {
        "run": sha256(os.path.join(path, checkpoint.MANIFEST)),
        "sparsity": hash_value(weights),
        "data": data.fingerprint(),
        **{k: getattr(request, k) for k in ("method", "samples", "seed", "damping")},
        "batch_size": request.size,
        "device": f"{device.type}, {torch.get_num_threads()} threads",
        "version": version.describe(),
    }


@torch.no_grad()
def measure_loss(model: GPTModel, shards: Shards, choice: Choice) -> Score:
    """Mean loss over all of `shards`, in file order, in float32.

    Raises:
        UserError: of `Shards.read`, or no token counts.
    """
    live, loss, tokens = Progress(-(-shards.total // shards.config.batch_size)), 0.0, 0
    for number, batch in enumerate(shards.holding.watch(iterate_validation(shards)), 1):
        part, _, counted = model.score(choice.backend.put(batch))
        loss, tokens = loss + float(part), tokens + int(counted)
        live.update(number, f"validation, loss {loss / max(tokens, 1):.4f}")
    live.close()
    return make_score(shards, loss, tokens)


def _write(
    request: Request,
    found: source.Source,
    model: GPTModel,
    pruned: Sequence[Pruned],
    config: Config,
    about: Mapping[str, Any],
    scores: Mapping[str, Score],
    unfinished: str,
) -> str:
    tensors = {name: p.detach().cpu() for name, p in model.named_parameters()}
    tensors |= {name_mask(p.name): p.mask for p in pruned}
    dataset = f"none (pruned from {found.path})"
    state = CheckpointState.of(config.trainer.init, global_step=0, dataset=dataset, finite=True).as_json()
    layers = [{k: v for k, v in p._asdict().items() if k not in ("mask", "order") and v is not None} for p in pruned]
    report = {"from": found.path, "method": request.method, **about, "weights": layers}
    report["validation"] = {
        k: {"loss": s.loss, "perplexity": s.perplexity, "tokens": s.tokens} for k, s in scores.items()
    }
    others = {REPORT: json.dumps(report, indent=1) + "\n"}
    if (words := tokenizer_in([RunFolder.containing(found.path).path])) is not None:
        others[f.TOKENIZER] = read_tokenizer(words)
    files = {"model": tensors, "optimizer": {}}
    if orders := {p.name: p.order for p in pruned if p.order is not None}:
        files[ORDERS] = orders
    return write_run(
        request.out, files, state, config, f"pruned by `run.py prune` from {found.path}", others, unfinished
    )


def _describe(
    request: Request,
    path: str,
    config: Config,
    pruned: Sequence[Pruned],
    about: Mapping[str, Any],
    scores: Mapping[str, Score],
) -> str:
    """The table of weights, the losses, and the command to go on with."""
    live, total = sum(p.live for p in pruned), sum(p.total for p in pruned)
    rows = [("weight", "live", "of", "off", "error", "magnitude's")]
    share = lambda x: "-" if x is None else f"{x:.4f}"
    for p in pruned:
        name = p.name.removeprefix("model.transformer_decoder.").removesuffix(".weight")
        off = f"{100 * (1 - p.live / p.total):.2f} %"
        rows.append((name, f"{p.live:,}", f"{p.total:,}", off, share(p.error), share(p.of_magnitude)))
    rows.append(("all", f"{live:,}", f"{total:,}", f"{100 * (1 - live / total):.2f} %", "", ""))
    shown = 4 if all(p.error is None for p in pruned) else 6 if request.compare else 5
    widths = [max(len(row[i]) for row in rows) for i in range(shown)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(x.rjust(w) for x, w in zip(row[1:shown], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    if shown > 4:
        lines.append("error: ||W X - W' X|| / ||W X|| over the calibration text, by what the pruned layers before give")
    text = f"pruned     {total - live:,} of {total:,} weights in {len(pruned)} matrices by {request.method}"
    if about.get("tokens"):
        text += f", with {about['examples']} examples ({format_amount(about['tokens'])} tokens)"
    lines.append(f"{text}, in {about['seconds']:.1f} s")
    if about.get("examples", request.samples) < request.samples:
        lines.append(f"note       --samples {request.samples}: the data has {about['examples']} examples")
    for name, score in scores.items():
        what = "before" if name == "before" else f"by {name}"
        lines.append(
            f"validation {what}: loss {score.loss:.4f}, perplexity {score.perplexity:.2f}, {score.tokens:,} tokens"
        )
    lines.append(f"wrote      {path}, and {REPORT} and config.yaml of {request.out}")
    if config.trainer.fit is None:
        lines.append(
            "           config.yaml has no data yet: add trainer.fit.train_dataloader, or prune with -p CONFIG"
        )
    words = ["-p", RunFolder(request.out).config, "-m", "train", "-o", request.out, "--checkpoint_path", path]
    command = f"python run.py {shlex.join(words)}"
    lines.append(f"next       {command} --load_checkpoint_states model,sparsity")
    return "\n".join(lines)
