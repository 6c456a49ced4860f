"""Load a model to score: a checkpoint of ours or a Hugging Face folder, with its tokenizer and context length."""

import os
import sys
from typing import Any, NamedTuple

from pydantic import Field
from torch import nn

from modelzoo.backends.base import Backend
from modelzoo.backends.select import Choice, select_device
from modelzoo.config.errors import UserError
from modelzoo.config.trainer import Config
from modelzoo.data import manifest, tokenizer
from modelzoo.data.bos import load_with_bos
from modelzoo.data.folder import read_manifest
from modelzoo.data.tokenizer import Tokenizer, check_vocabulary
from modelzoo.data.tokenizer_files import note_other
from modelzoo.distributed import ALONE, Ranks
from modelzoo.evaluation.inference import exported
from modelzoo.evaluation.inference.exported_files import is_exported
from modelzoo.evaluation.prompts.soft_prompt import Soft
from modelzoo.interop.mdl.state import load_checkpoint
from modelzoo.planning import start_checkpoint
from modelzoo.reading import exists
from modelzoo.records import Record, check_record, read_record
from modelzoo.training.build import Options, build_run
from modelzoo.training.checkpoints.restore import restore

REASONS = ("benchmark_pmid", "benchmark_overlap")  # for which preprocessing leaves out what is of a test set


class Filters(Record):
    decontaminate: list[str] | None = None
    decontaminate_ngram: int | None = None


class JobConfig(Record):
    filters: Filters = Filters()


class DataJob(Record):
    """job.json of preprocessing, as far as it tells of decontamination."""

    config: JobConfig = JobConfig()


class DataCounts(Record):
    """A manifest of preprocessing, likewise."""

    reasons: dict[str, int] = Field(default={})


class LoadedModel(NamedTuple):
    """A model to score."""

    path: str
    model: nn.Module
    choice: Choice
    tokenizer: Tokenizer
    length: int
    soft: Soft
    facts: dict[str, Any]  # for the report

    @property
    def backend(self) -> Backend:
        return self.choice.backend


def find_checkpoints(config: Config, options: Options) -> list[str]:
    """The checkpoints that the command names (several: seeds of one experiment), or the newest of the run folder."""
    if options.checkpoint_path is None:
        return [start_checkpoint.find_checkpoint(options.model_dir)]
    named = [options.checkpoint_path] if os.path.exists(options.checkpoint_path) else options.checkpoint_path.split(",")
    return [p if is_exported(p) else start_checkpoint.find_checkpoint(p) for p in named]


def load_model(path: str, config: Config, options: Options, ranks: Ranks = ALONE) -> LoadedModel:
    """The model at `path` on its device, which is this rank's.

    Raises:
        UserError: it does not fit the config, or has no tokenizer.
    """
    choice = select_device(options.target, config.trainer.init, ranks=ranks)
    return _folder(path, config, choice) if is_exported(path) else _ours(path, config, options, choice)


def _ours(path: str, config: Config, options: Options, choice: Choice) -> LoadedModel:
    init = config.trainer.init
    run = build_run(config, choice)
    files, saved = load_checkpoint(path, init, None)
    states = tuple(s for s in options.load_states if s != "optimizer")
    restore(run, path, files, saved, None, states, options.strict)
    m = init.model
    words = tokenizer.load_tokenizer(start_checkpoint.find_tokenizer_path(init, path), bos=m.bos_token_id)
    check_vocabulary(words.name, words.size, m.vocab_size)
    if init.tokenizer is not None:
        note_other(words, start_checkpoint.list_tokenizer_places(path))
    facts = {"checkpoint": path, "step": run.step, "dtype": choice.backend.arithmetic.dtype}
    facts["parameters"] = sum(shape.numel for shape in run.shapes.values())
    if masked := run.sparsity.parameters:
        facts["sparsity"] = run.sparsity.actual()  # of the weights under masks
        facts["live"] = facts["parameters"] - sum(p.shape.numel() - p.live for p in masked)
    if found := read_decontamination(config):
        facts["decontamination"] = found
    return LoadedModel(path, run.model, choice, words, m.max_position_embeddings, Soft.of(init), facts)


def _folder(path: str, config: Config, choice: Choice) -> LoadedModel:
    model = exported.load_exported(path, choice.backend.device)
    words = load_with_bos(config.trainer.init.tokenizer or path)
    check_vocabulary(words.name, words.size, model.vocab_size)
    count = sum(p.numel() for p in model.parameters())
    facts = {"checkpoint": path, "dtype": choice.backend.arithmetic.dtype, "parameters": count}
    return LoadedModel(path, model, choice, words, model.length, Soft(), facts)


def read_decontamination(config: Config) -> dict[str, Any] | None:
    """What preprocessing recorded of test sets kept out of the training data; None where there is no record.

    Returns:
        test_sets: SHA-256 of the files whose ids and texts were kept out of all folders; ngram: words in a row that
        count as shared, the most of a folder; dropped: documents left out, by reason; unrecorded: folders without a
        record, where there are some.
    """
    folders = manifest.list_folders(config.trainer.fit.train_dataloader) if config.trainer.fit is not None else []
    tops = list(dict.fromkeys(os.path.dirname(os.path.abspath(folder)) for folder in folders))
    found = [(top, record) for top in tops if (record := _read_job(top)) is not None]
    if not found:
        return None
    shared = [t for t in found[0][1]["test_sets"] if all(t in record["test_sets"] for _, record in found)]
    without = [top for top in tops if top not in dict(found)]
    return {
        "test_sets": shared,
        "ngram": max(record["ngram"] for _, record in found),
        "dropped": {k: sum(record["dropped"][k] for _, record in found) for k in REASONS},
        **({"unrecorded": without} if without else {}),
    }


def _read_job(top: str) -> dict[str, Any] | None:
    """The record of the preprocessing job in `top`; None where it has none."""
    job = os.path.join(top, "job.json")
    if not exists(job):
        return None
    try:
        filters = read_record(job, DataJob, "is missing", "is not what preprocessing writes").config.filters
        facts = check_record(read_manifest(top), DataCounts, top, "its manifest was changed")
    except UserError as e:
        print(f"note       decontamination is not on record: {e}", file=sys.stderr)
        return None
    if not filters.decontaminate:
        return None
    dropped = {k: facts.reasons.get(k, 0) for k in REASONS}
    return {"test_sets": filters.decontaminate, "ngram": filters.decontaminate_ngram or 0, "dropped": dropped}
