"""A model's scores on a task: predictions, metrics, intervals."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from modelzoo.data.tokenizer import Tokenizer
from modelzoo.evaluation.examples.example import Example
from modelzoo.evaluation.forms.choice import Choices
from modelzoo.evaluation.inference.batches import Progress
from modelzoo.evaluation.inference.decoding import generate_answers
from modelzoo.evaluation.inference.grammar import Answer
from modelzoo.evaluation.inference.likelihoods import compute_likelihoods, score_continuations
from modelzoo.evaluation.prompts.encode import Counts, count, encode_prompt
from modelzoo.evaluation.prompts.few_shot import ChoiceCounts, count_cut, encode_questions
from modelzoo.evaluation.prompts.soft_prompt import NONE, Soft
from modelzoo.evaluation.statistics import intervals
from modelzoo.evaluation.tasks.base import Task


class Prediction(NamedTuple):
    """`log_p`: of each label, where labels were compared by their likelihood."""

    id: str
    gold: Any
    prediction: Any
    log_p: dict[str, float] | None = None


class Group(NamedTuple):
    """Scores of a part of a test, as one of the subjects of MMLU."""

    n: int
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]


class Scores(NamedTuple):
    """Metrics by name, their 95 % bootstrap intervals, and what they come from.

    Attributes:
        n: examples that are scored. units: documents that they are of, which the bootstrap draws; n where unknown.
    """

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    predictions: list[Prediction]
    n: int
    counts: Counts | ChoiceCounts
    units: int
    groups: Mapping[str, Group] = MappingProxyType({})  # by name, where the task has groups; and their MEAN


MEAN = "mean over groups"  # each of which weighs alike


def evaluate_task(
    model,
    backend,
    task: Task,
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    length: int,
    soft: Soft = NONE,
    batch_size: int = 8,
    progress: Progress | None = None,
    resamples: int = intervals.RESAMPLES,
    split: str = "test",
) -> Scores:
    """Score `model` on `examples`. Examples without gold are predicted, and left out of the metrics.

    Args:
        model: GPTModel, or another with `model.hidden` and `model.logits`; its training mode is left as it was.
        backend: has `autocast()` and `put(batch)`.
        length: ids at most in a row; sources are cut to it (encode.encode_prompt).
        soft: the model's soft prompt.
        progress: called with (rows done, rows in all).
        resamples: of the bootstrap; 0 leaves intervals out.
        split: that the examples are of; multiple choice keeps a question out of its own solved examples.
    """
    was = model.training
    model.eval()
    try:
        if isinstance(task, Choices):
            asked = encode_questions(task, examples, split, tokenizer, length, soft)
            pairs = [pair for a in asked for pair in a.pairs]
            values = iter(score_continuations(model, backend, pairs, batch_size, progress))
            found = [_pick(task, e, [next(values)[0] for _ in a.pairs]) for e, a in zip(examples, asked, strict=True)]
            return score_groups(task, examples, score_predictions(task, found, count_cut(asked), resamples), resamples)
        prompts = [encode_prompt(task, e, tokenizer, length, soft) for e in examples]
        ids = [p.ids for p in prompts]
        if task.config.decoding == "likelihood" and task.choices(examples[0]) is not None:
            found = _compare(model, backend, task, examples, ids, tokenizer, length, soft, batch_size, progress)
        else:
            answers = [Answer.begin(task, e, tokenizer) for e in examples]
            generate_answers(model, backend, ids, answers, batch_size, progress)
            found = [
                Prediction(e.id, e.gold, task.answer(a.labels or ())) for e, a in zip(examples, answers, strict=True)
            ]
    finally:
        model.train(was)
    return score_predictions(task, found, count(prompts, soft), resamples)


def _pick(task: Choices, example: Example, log_p: list[float]) -> Prediction:
    by_label = dict(zip(task.labels, log_p, strict=True))
    return Prediction(example.id, example.gold, task.pick(example, log_p), by_label)


def score_groups(task: Choices, examples: Sequence[Example], whole: Scores, resamples: int) -> Scores:
    """`whole` with the scores of each group, in the files' order, and their mean, in which groups weigh alike.

    The mean's interval is of resamples drawn in each group by itself.
    """
    if task.config.group_field is None:
        return whole
    parts: dict[str, list[Prediction]] = {}
    for e, p in zip(examples, whole.predictions, strict=True):
        if p.gold is not None:
            parts.setdefault(task.group(e) or "(none)", []).append(p)
    groups, drawn = {}, []
    for seed, (name, found) in enumerate(parts.items()):
        golds, predictions = [p.gold for p in found], [p.prediction for p in found]
        around = {}
        if resamples:
            values = task.metrics(golds, predictions, intervals.draw_weights(len(found), resamples, seed))
            around = {k: intervals.find_middle(v) for k, v in values.items()}
            drawn.append(values)
        groups[name] = Group(len(found), task.metrics(golds, predictions), around)
    if len(groups) > 1:
        mean = {k: float(np.mean([g.metrics[k] for g in groups.values()])) for k in whole.metrics}
        around = {k: intervals.find_middle(np.mean([v[k] for v in drawn], 0)) for k in whole.metrics} if drawn else {}
        groups[MEAN] = Group(whole.n, mean, around)
    return whole._replace(groups=groups)


def score_predictions(
    task: Task, found: list[Prediction], counts: Counts | ChoiceCounts, resamples: int = intervals.RESAMPLES
) -> Scores:
    """Metrics and intervals of predictions."""
    known = [p for p in found if p.gold is not None]
    golds, predictions = [p.gold for p in known], [p.prediction for p in known]
    metrics = task.metrics(golds, predictions) if known else {}
    units, draws = [task.find_unit(p.id) for p in known], known and resamples
    around = intervals.bootstrap(task.metrics, golds, predictions, resamples, units=units) if draws else {}
    return Scores(metrics, around, found, len(known), counts, len(set(units)))


def _compare(model, backend, task: Task, examples, prompts, tokenizer, length, soft, batch_size, progress):
    texts = [task.choices(e) or {} for e in examples]
    ids_of = {text: tokenizer.encode(text) for choices in texts for text in choices.values()}
    answers = [[ids_of[text] for text in choices.values()] for choices in texts]
    values = compute_likelihoods(model, backend, prompts, answers, batch_size, progress)
    log_p = [v.log_p for v in values]
    if task.config.normalize == "length":
        log_p = [v.log_p / v.tokens for v in values]
    elif task.config.normalize == "pmi":
        priors: dict[tuple, np.ndarray] = {}
        for e, choices, mine in zip(examples, texts, answers, strict=True):
            if (key := tuple(choices.values())) not in priors:
                blank = e._replace(fields=dict.fromkeys(e.fields, ""))
                ids = encode_prompt(task, blank, tokenizer, length, soft).ids
                priors[key] = compute_likelihoods(model, backend, [ids], [mine], batch_size)[0].log_p
        log_p = [x - priors[tuple(c.values())] for x, c in zip(log_p, texts, strict=True)]
    found = []
    for e, choices, x in zip(examples, texts, log_p, strict=True):
        labels = list(choices)
        by_label = dict(zip(labels, map(float, x), strict=True))
        found.append(Prediction(e.id, e.gold, task.choose(labels, x), by_label))
    return found
