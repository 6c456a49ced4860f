"""A task to fine-tune on: its training rows, its scores on dev and test, and the table of runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from modelzoo.backends.base import Backend
from modelzoo.config.errors import UserError
from modelzoo.config.sections.finetune import Finetune
from modelzoo.config.trainer import Init
from modelzoo.data.tokenizer import Tokenizer, check_vocabulary, read_tokenizer
from modelzoo.evaluation.examples.example import Example
from modelzoo.evaluation.examples.remarks import Remarks
from modelzoo.evaluation.examples.sample import take_sample
from modelzoo.evaluation.forms.load import load_task
from modelzoo.evaluation.prompts.encode import Counts, encode_training
from modelzoo.evaluation.prompts.soft_prompt import Soft
from modelzoo.evaluation.scores.evaluate import Scores, evaluate_task
from modelzoo.evaluation.scores.results import hash_examples, hash_task
from modelzoo.evaluation.statistics import intervals
from modelzoo.evaluation.tasks.base import SPLITS, Task
from modelzoo.evaluation.tasks.remarks import remark_examples
from modelzoo.progress import Progress
from modelzoo.records import hash_value
from modelzoo.train_state import TrainState


@dataclass
class FinetuneTask:
    """A task with all that scoring needs. Examples are read once for each split and fold."""

    task: Task
    tokenizer: Tokenizer
    length: int
    soft: Soft
    batch_size: int
    limits: dict[str, int | None]  # how many examples of a split to take
    _read: dict[tuple[str, int], tuple[list[Example], Remarks]] = field(default_factory=dict)

    @classmethod
    def open(cls, section: Finetune, init: Init, tokenizer: Tokenizer) -> "FinetuneTask":
        """The task of a finetune section, checked against the model.

        Raises:
            UserError: a tokenizer of another vocabulary, a length that the model has no positions for.
        """
        m = init.model
        check_vocabulary(tokenizer.name, tokenizer.size, m.vocab_size)
        length = section.max_sequence_length or m.max_position_embeddings
        if m.position_embedding_type in ("learned", "fixed") and length > m.max_position_embeddings:
            raise UserError(
                f"trainer.finetune.max_sequence_length: {length}, the model has {m.max_position_embeddings} positions"
            )
        overrides = [f"data_dir={section.data_dir}"] if section.data_dir else []
        task = load_task(section.task, overrides)
        limits = {"train": section.num_examples, "dev": section.num_dev_examples}
        made = cls(task, tokenizer, length, Soft.of(init), section.eval_batch_size, limits)
        if not made.has_folds and section.folds != (0,):
            raise UserError(f"trainer.finetune.folds: {made.name} has no folds; remove the key")
        return made

    @property
    def name(self) -> str:
        return self.task.name

    @property
    def main_metric(self) -> str:
        return self.task.main_metric

    @property
    def has_folds(self) -> bool:
        return self.task.config.form == "pubmedqa"

    def describe(self) -> str:
        return self.task.describe()

    def examples(self, split: str, fold: int) -> list[Example]:
        return self._take(split, fold)[0]

    def remarks(self, split: str, fold: int) -> Remarks:
        """What a person should know of a split's examples."""
        return self._take(split, fold)[1]

    def note_remarks(self, split: str, fold: int, out: Progress) -> None:
        """Write a line for each of them."""
        for line in self.remarks(split, fold).describe():
            out.note(f"{split:<10} {line}")

    def _take(self, split: str, fold: int) -> tuple[list[Example], Remarks]:
        if (split, fold) not in self._read:
            remarks, limit = Remarks(), self.limits.get(split)
            whole = self.task.examples(split, fold, remarks.add)
            found = take_sample(whole, limit)
            remark_examples(self.task, split, found, remarks.add)
            if limit is not None and limit != len(whole):
                key = "num_examples" if split == "train" else "num_dev_examples"
                how = f"are asked for, the split has {len(whole):,}"
                how = how if limit > len(whole) else f"of the split's {len(whole):,}, drawn by their ids"
                remarks.notes.append(f"trainer.finetune.{key}: {limit:,} {how}")
            if split == "dev":  # which decides which weights are the best
                self.task.labelled(found, split)
            self._read[split, fold] = found, remarks
        return self._read[split, fold]

    def fingerprint(self, fold: int) -> dict[str, str | None]:
        """Hashes of the task, its tokenizer and its examples; None of a split that is not at hand."""
        found: dict[str, str | None] = {"task": hash_task(self.task)}
        found["tokenizer"] = hash_value(read_tokenizer(self.tokenizer.name))
        for split in SPLITS:
            try:
                found[split] = hash_examples(self.examples(split, fold))
            except UserError:  # whoever needs it says so
                found[split] = None
        return found

    def encode_training(self, fold: int) -> tuple[np.ndarray, Counts]:
        """The training rows [n, 3, length] int32, and what was cut."""
        return encode_training(self.task, self.examples("train", fold), self.tokenizer, self.length, self.soft)

    def score(self, backend: Backend, run: TrainState, split: str, fold: int, resamples: int = 0) -> Scores:
        """Of the run's model as it is. `resamples` of the bootstrap; 0 leaves intervals out."""
        found = self.examples(split, fold)
        return evaluate_task(
            run.model, backend, self.task, found, self.tokenizer, self.length, self.soft,
            batch_size=self.batch_size, resamples=resamples, split=split,
        )  # fmt: skip

    def score_constant(self, split: str, fold: int) -> dict[str, float]:
        """The metrics of the answer that is best when always given (by the training split): what to beat."""
        known = self.task.labelled(self.examples(split, fold), split)
        return self.task.metrics([e.gold for e in known], self.task.baseline(self.examples("train", fold), known))


def format_table(results: Sequence[Mapping[str, Any]]) -> str:
    """The runs of a command: each metric's mean over runs, its 95 % interval by Student's t, and the majority's.

    Runs of one fold share their examples. So where there are several folds, the interval is that of their means.
    """
    lines = []
    for split in results[0]["scores"]:
        scores = [(r["fold"], r["scores"][split]) for r in results if split in r["scores"]]
        (_, first), many = scores[0], len({fold for fold, _ in scores}) > 1
        about = "; of the weights that scored best on it, so a little flattered" if split == "dev" else ""
        lines.append(f"{split} ({first['n']} examples, {len(scores)} run{'s' * (len(scores) > 1)}{about})")
        for metric in dict.fromkeys(m for _, s in scores for m in s["metrics"]):
            found = [(fold, v) for fold, s in scores if (v := s["metrics"].get(metric)) is not None]
            if not found:
                continue
            values = _mean_by_fold(found) if many else [v for _, v in found]
            spread = intervals.measure_spread(values)
            if len(values) > 1:
                low, high = (f"{x:.4f}" for x in (spread.low, spread.high))
                over = f" over {len(values)} folds" if many else ""
                around = f"mean of {len(found)}: 95 % of {low} to {high}, sd {spread.sd:.4f}{over}"
            else:
                low, high = first["intervals"].get(metric) or (None, None)
                around = "no interval" if low is None or high is None else f"bootstrap 95 % of {low:.4f} to {high:.4f}"
            constant = [v for _, s in scores if (v := s["majority"].get(metric)) is not None]
            base = f"{np.mean(constant):.4f}" if constant else "undefined"
            lines.append(f"  {metric:<16} {spread.mean:.4f}  ({around}; best constant answer {base})")
    return "\n".join(lines)


def _mean_by_fold(found: Sequence[tuple[int, float]]) -> list[float]:
    """The mean of each fold's values."""
    folds = dict.fromkeys(fold for fold, _ in found)
    return [float(np.mean([v for of, v in found if of == fold])) for fold in folds]
