"""EleutherAI's lm-evaluation-harness over our models: its tasks by name, or ours handed to it (the extra `eval`)."""

import importlib.util
import os
import sys
from collections.abc import Sequence
from typing import Any

from modelzoo.config.errors import UserError
from modelzoo.config.task import Shots
from modelzoo.data.tokenizer import Tokenizer
from modelzoo.evaluation.forms.choice import Choices
from modelzoo.evaluation.forms.load import load_task
from modelzoo.evaluation.inference.batches import share_batches
from modelzoo.evaluation.inference.decoding import decode_greedily
from modelzoo.evaluation.inference.likelihoods import score_continuations
from modelzoo.evaluation.tasks.base import Task
from modelzoo.evaluation.tasks.labels import SingleLabel
from modelzoo.evaluation.tasks.remarks import read_examples


def require_lm_eval() -> None:
    """Raises UserError where lm-eval is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("lm_eval: tasks need lm-evaluation-harness; pip install 'mediswift-trainer[eval]'")


def wrap_model(model, backend, tokenizer: Tokenizer, length: int, batch_size: int):
    """`model` as an `lm_eval.api.model.LM`: loglikelihood, loglikelihood_rolling and (greedy) generate_until.

    Texts become ids as the harness's own Hugging Face model makes them, so both give one score: with BOS in front where
    the model has one (`add_bos_token` of 0.4.10 and later leaves that to the tokenizer), in rolling windows once more.
    """
    from lm_eval import utils
    from lm_eval.api.model import TemplateLM

    class Harness(TemplateLM):
        eot_token_id = tokenizer.eos  # plain values for the properties that TemplateLM asks for
        prefix_token_id = tokenizer.first
        cut = shortened = 0  # prompts, and answers' lengths, that the model's context has no room for

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs) -> list[int]:
            return [*([] if add_special_tokens is False else tokenizer.prefix), *tokenizer.encode(string)]

        def _loglikelihood_tokens(self, requests, **kwargs) -> list[tuple[float, bool]]:
            pairs = []
            for _, context, continuation in requests:
                if len(continuation) > length:
                    raise UserError(f"lm_eval: an answer of {len(continuation)} tokens exceeds the context of {length}")
                kept = length + 1 - len(continuation)  # of a long context the end, as the harness has it
                self.cut += len(context) > kept
                pairs.append((context[-kept:], continuation))
            return score_continuations(model, backend, pairs, batch_size)

        def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
            totals = []
            for (text,) in (r.args for r in requests):
                windows = utils.get_rolling_token_windows(self.tok_encode(text), tokenizer.first, length, 1)
                pairs = [utils.make_disjoint_window(w) for w in windows]
                totals.append(sum(s for s, _ in score_continuations(model, backend, pairs, batch_size)))
            return totals

        def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
            def generate(batch: list) -> list[str]:
                return [self._generate(*prompt) for prompt in batch]

            prompts = [self._read(*r.args) for r in requests]
            return [x for found in share_batches(prompts, 1, backend.ranks, generate) for x in found]

        def _read(self, context: str, options: dict[str, Any]) -> tuple[list[int], int, dict[str, Any]]:
            """A prompt's ids as they fit, how many may follow, and the options; counts what has no room."""
            whole, wanted = self.tok_encode(context) or [tokenizer.eos], options.get("max_gen_toks", 256)
            tokens = min(wanted, length - 1)
            self.cut += len(whole) > length - tokens
            self.shortened += tokens < wanted
            return whole[-(length - tokens) :], tokens, options

        def _generate(self, prompt: list[int], tokens: int, options: dict[str, Any]) -> str:
            if options.get("do_sample"):
                raise UserError("lm_eval: this task samples; only greedy generation is supported")
            until = options.get("until") or []
            stops = [until] if isinstance(until, str) else list(until)

            def done(ids: list[int]) -> bool:
                return ids[-1] == tokenizer.eos or any(s in tokenizer.decode(ids) for s in stops)

            ids = decode_greedily(model, backend, [prompt], tokens, done)[0]
            text = tokenizer.decode(ids[:-1] if ids and ids[-1] == tokenizer.eos else ids)
            return text[: min((text.index(s) for s in stops if s and s in text), default=len(text))]

    return Harness()


def convert_task(task: Task, split: str):
    """A task of ours as one of the harness's, multiple choice over its labels: no network, same texts."""
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    examples, remarks = read_examples(task, split)
    examples = task.labelled(examples, split)
    for line in remarks.describe():
        print(f"note       lm_eval:{task.name}: {line}", file=sys.stderr)
    if not isinstance(task, SingleLabel) or task.config.form == "similarity":
        raise UserError(f"lm_eval:{task.name}: the harness takes tasks whose answer is one of a few labels")
    labels, delimiter = list(task.labels), task.head
    rows = [
        {
            "text": prompt,
            "choices": [text.removeprefix(delimiter) for text in task.choices(e).values()],
            "gold": labels.index(e.gold),
        }
        for e, prompt in zip(examples, task.prompts(examples, split), strict=True)
    ]
    names = ["acc", "acc_norm"] if isinstance(task, Choices) else ["acc"]
    return ConfigurableTask(
        config={
            "task": task.name,
            "custom_dataset": lambda **_: {split: Dataset.from_list(rows)},
            "test_split": split,
            "output_type": "multiple_choice",
            "doc_to_text": "text",
            "doc_to_choice": "choices",
            "doc_to_target": "gold",
            "target_delimiter": delimiter,
            "num_fewshot": 0,  # the texts hold them already
            "metric_list": [{"metric": n, "aggregation": "mean", "higher_is_better": True} for n in names],
            "metadata": {"version": 1.0},
        }
    )


def run_lm_eval(
    model,
    backend,
    tokenizer: Tokenizer,
    length: int,
    names: Sequence[str],
    batch_size: int,
    overrides: Sequence[str] = (),
    split: str = "dev",
    limit: int | None = None,
    shots: int | None = None,
    shots_seed: int | None = None,
) -> dict[str, dict[str, float]]:
    """The harness's metrics ("acc,none", "acc_stderr,none", ...) by name.

    Args:
        names: its task names, or files of ours (configs/eval/*.yaml), which need no network; a folder's name makes the
            harness's own YAML files in it known.
        overrides: "key=value" over files of ours.
        shots: solved examples before each question of the harness's own tasks (None: theirs), drawn with `shots_seed`.

    Raises:
        UserError: the harness knows no such task, or cannot get its data.
    """
    require_lm_eval()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import lm_eval
    from lm_eval.tasks import TaskManager

    folders = [n for n in names if os.path.isdir(n)]
    files = {n: load_task(n, overrides) for n in names if n.endswith(".yaml")}
    tasks = [convert_task(files[n], split) if n in files else n for n in names if n not in folders]
    was = model.training
    model.eval()
    try:
        manager = TaskManager(include_path=folders or None)
        wrapped = wrap_model(model, backend, tokenizer, length, batch_size)
        found = lm_eval.simple_evaluate(
            model=wrapped, tasks=tasks, task_manager=manager,
            batch_size=batch_size, limit=limit, bootstrap_iters=1000, log_samples=False, num_fewshot=shots,
            fewshot_random_seed=Shots().seed if shots_seed is None else shots_seed,
        )  # fmt: skip
    except (ConnectionError, OSError, KeyError, ValueError) as e:
        raise UserError(
            f"lm_eval: {', '.join(map(str, names))}: {str(e).splitlines()[0][:200] if str(e) else e!r}"
        ) from e
    finally:
        model.train(was)
    for count, what in (
        (wrapped.cut, "prompts exceed the context and lost their beginning"),
        (wrapped.shortened, "answers may have fewer tokens than their task asks for: the context has no more"),
    ):
        if count:
            print(f"note       lm_eval: {count:,} {what}", file=sys.stderr)
    asked = {task.name: name for name, task in files.items()}
    numbers: dict[str, dict[str, float]]
    numbers = {n: {k: float(v) for k, v in m.items() if isinstance(v, float)} for n, m in found["results"].items()}
    return {asked.get(name, name): metrics for name, metrics in numbers.items()}
