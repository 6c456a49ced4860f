"""A trained model in a caller's own program: it writes and scores texts as `run.py generate` and `-m score` do."""

import argparse
import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import nn

from modelzoo.config.arguments import count, nonnegative_float, positive_float, positive_int, share
from modelzoo.config.errors import UserError
from modelzoo.data.tokenizer import Tokenizer
from modelzoo.evaluation.inference.exported import Exported
from modelzoo.evaluation.inference.likelihoods import score_continuations
from modelzoo.evaluation.prompts.few_shot import encode_choices
from modelzoo.evaluation.prompts.soft_prompt import add_soft
from modelzoo.generation.load import LoadedModel, load_model
from modelzoo.generation.prompts import Prompt, check_text
from modelzoo.generation.settings import Settings, choose_settings, require_model
from modelzoo.generation.write import begin_texts, write_batches

Path = str | os.PathLike[str]


def load(
    path: Path,
    *,
    config: Path | None = None,
    tokenizer: Path | None = None,
    target: str = "auto",
    dtype: str = "float32",
) -> "Model":
    """The model of a run, a checkpoint or an exported folder, ready to write and score.

    Args:
        path: a run folder (fine-tuned: its best checkpoint, else the newest), a step folder, a `.mdl`, or a folder of
            Hugging Face's.
        config: the run's YAML; default: config.yaml of the run folder. A `.mdl` needs one.
        tokenizer: a tokenizer.json or its folder; default: the run's or the export's own.
        target: CPU, GPU, or auto: the best at hand.
        dtype: float32 or bfloat16, of weights: half of the memory, and quicker to write. What CPUs compute with a run's
            model is float32 in either case.

    Raises:
        UserError: there is no such model, it does not fit its config or tokenizer, or is damaged.
    """
    for name, value in (("path", path), ("config", config), ("tokenizer", tokenizer)):
        if not isinstance(value, str | os.PathLike) and not (value is None and name != "path"):
            raise UserError(f"{name}: takes a path, got {type(value).__name__}")
    if target not in ("CPU", "GPU", "auto"):
        raise UserError(f"target: takes CPU, GPU or auto, got {target!r}")
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"dtype: takes float32 or bfloat16, got {dtype!r}")
    text = os.fspath(path)
    require_model(text)
    params, words = (None if x is None else os.fspath(x) for x in (config, tokenizer))
    return Model(load_model(text, params, words, target, dtype))


class Model:
    """A trained model. Made by `load`.

    Attributes:
        path: the checkpoint or export that it was loaded from.
        notes: lines about how it is computed.
        length: tokens of its context.
    """

    def __init__(self, loaded: LoadedModel):
        self._loaded = loaded
        self.path, self.notes, self.length = loaded.path, loaded.notes, loaded.length

    def __repr__(self) -> str:
        return f"<modelzoo model {self.path}: context of {self.length} tokens>"

    @property
    def module(self) -> nn.Module:
        """The torch module, in evaluation mode; of an export transformers' own. Masked weights may be packed in it."""
        found = self._loaded.model
        return found.model.hf if isinstance(found, Exported) else found

    @property
    def tokenizer(self) -> Tokenizer:
        """`encode(text)`, `decode(ids)`, `size` and `eos`."""
        return self._loaded.tokenizer

    @property
    def config(self) -> Any:
        """The model's config: a `GPTConfig`; of an export transformers' own."""
        module: Any = self.module
        return module.config if isinstance(self._loaded.model, Exported) else module.model.config

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        max_new_tokens: int = 128,
        samples: int = 1,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float = 1.0,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
        batch_size: int = 8,
        refuse_long: bool = False,
    ) -> list[str]:
        """What the model writes behind each prompt: greedily, or drawn where temperature, top_k, top_p or samples ask.

        Args:
            prompts: one, or several. An empty one begins where a text of the training data does.
            samples: texts for each prompt; those of a prompt follow each other.
            stop: texts that end a text, and are no part of it.
            seed: of the draws. A text follows from the model, its prompt, the seed and its number among the samples.
            refuse_long: refuse a prompt that leaves no room in the context; else its end is read, and a warning given.

        Raises:
            UserError: settings that do not go together, or a prompt that does not fit.
        """
        stops = (stop,) if isinstance(stop, str) else tuple(_take_texts("stop", stop))
        values = {
            "max_new_tokens": (positive_int, max_new_tokens), "samples": (positive_int, samples),
            "temperature": (nonnegative_float, temperature), "top_k": (positive_int, top_k), "top_p": (share, top_p),
            "repetition_penalty": (positive_float, repetition_penalty), "seed": (count, seed),
        }  # fmt: skip
        size = _check("batch_size", positive_int, batch_size)
        found = {name: _check(name, parse, value) for name, (parse, value) in values.items()}
        with _naming_arguments():
            settings: Settings = choose_settings(**found, stops=stops)
            given = [Prompt(text, f"prompts[{i}]") for i, text in enumerate(_take_texts("prompts", prompts))]
            for prompt in given:
                check_text(prompt)
            warn = lambda line: warnings.warn(line, stacklevel=4)
            texts = begin_texts(self._loaded, given, settings, refuse_long, warn)
        write_batches(self._loaded, texts, size)
        return [text.text for text in texts]

    def score(self, texts: str | Sequence[str], *, batch_size: int = 8) -> list[float]:
        """The log-likelihood of each text in nats: of all its tokens, the first behind BOS or the end of another text.

        A text longer than the context is scored in windows that share no token, the last with as much before it as the
        context holds, as lm-evaluation-harness does (`loglikelihood_rolling`).

        Raises:
            UserError: something that is no text, or a character that the tokenizer does not know.
        """
        pairs, owner = [], []
        for i, text in enumerate(_take_texts("texts", texts)):
            ids = self._encode(text, f"texts[{i}]") if text else []
            windows = self._cut(ids)
            pairs += windows
            owner += [i] * len(windows)
        totals = [0.0] * len(_take_texts("texts", texts))
        for i, value in zip(owner, self._measure(pairs, batch_size), strict=True):
            totals[i] += value
        return totals

    def score_choices(self, prompt: str, choices: Sequence[str], *, batch_size: int = 8) -> list[float]:
        """log p(choice | prompt) of each choice in nats. Prompt and choice become tokens together, as in a task.

        A prompt that leaves no room loses its beginning.

        Raises:
            UserError: a choice that is empty, or longer than the context.
        """
        if not isinstance(prompt, str):
            raise UserError(f"prompt: takes a text, got {type(prompt).__name__}")
        found, loaded, pairs = _take_texts("choices", choices), self._loaded, []
        for i, choice in enumerate(found):
            self._encode(prompt + choice, f"choices[{i}]")  # names what is no token
        before, behind = encode_choices(prompt, found, self.tokenizer)
        most = self.length - loaded.soft.tokens
        for i, answer in enumerate(behind):
            if not 0 < len(answer) <= most:
                raise UserError(f"choices[{i}]: has {len(answer)} tokens behind its prompt; a choice has 1 to {most}")
            context = (before or [self.tokenizer.first])[-(most + 1 - len(answer)) :]
            pairs.append((add_soft(context, loaded.soft), answer))
        return self._measure(pairs, batch_size)

    def _encode(self, text: str, where: str) -> list[int]:
        prompt = Prompt(text, where)
        check_text(prompt)
        return self._loaded.encode(prompt)

    def _cut(self, ids: list[int]) -> list[tuple[list[int], list[int]]]:
        """(context, what is scored behind it) for all of `ids`, in windows of the context's length."""
        room, whole = self.length - self._loaded.soft.tokens, [self.tokenizer.first, *ids]
        found = []
        for start in range(0, len(ids), room):
            end = min(start + room, len(ids))
            context = whole[max(0, end - room) : start + 1]
            found.append((add_soft(context, self._loaded.soft), whole[start + 1 : end + 1]))
        return found

    def _measure(self, pairs: list[tuple[list[int], list[int]]], batch_size: int) -> list[float]:
        size = _check("batch_size", positive_int, batch_size)
        found = score_continuations(self._loaded.model, self._loaded.backend, pairs, size)
        return [log_p for log_p, _ in found]


def _take_texts(name: str, texts: str | Sequence[str]) -> list[str]:
    """One text or several as a list.

    Raises:
        UserError: something among them is no text.
    """
    found: list[Any] = list(texts) if isinstance(texts, Sequence) and not isinstance(texts, str) else [texts]
    if odd := next(([i, x] for i, x in enumerate(found) if not isinstance(x, str)), None):
        raise UserError(f"{name}[{odd[0]}]: takes a text, got {type(odd[1]).__name__}")
    return found


def _check(name: str, parse: Callable[[str], Any], value: Any) -> Any:
    """A number by the rules of the command line's flag of that name; None stays.

    Raises:
        UserError: names it.
    """
    try:
        return None if value is None else parse(str(value))
    except argparse.ArgumentTypeError as e:
        raise UserError(f"{name}: {e}") from None


@contextlib.contextmanager
def _naming_arguments() -> Iterator[None]:
    """Name arguments as Python does in what the body refuses: without a flag's dashes."""
    try:
        yield
    except UserError as e:
        e.args = (str(e).replace("--", ""),)
        raise
