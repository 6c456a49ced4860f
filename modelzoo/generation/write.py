"""Texts written token by token, in batches whose rows begin and end on their own."""

from collections.abc import Callable, Sequence

import torch

from modelzoo.config.errors import UserError
from modelzoo.draws import make_generator
from modelzoo.evaluation.inference.decoding import Continuation
from modelzoo.evaluation.prompts.soft_prompt import add_soft
from modelzoo.generation.load import LoadedModel
from modelzoo.generation.prompts import Prompt
from modelzoo.generation.sampling import choose_token
from modelzoo.generation.settings import Settings
from modelzoo.generation.text import GrowingText

NAMED = 5  # prompts that are cut, by name; the others are counted
WHY = {  # how a text ended
    "end": "the model ended the text",
    "stop": "a stop came",
    "length": "as long as --max_new_tokens allows",
    "context": "the context is full",
}


class Text:
    """A text that is being written.

    Args:
        prompt: as it was given. sample: the number of this text among those of one prompt.

    Attributes:
        ids: the tokens written. end: why it ended (WHY); None while it goes on.
        cut: tokens that the prompt's beginning was shortened by.
    """

    def __init__(self, model: LoadedModel, prompt: Prompt, sample: int, settings: Settings):
        self.prompt, self.sample, self._settings, self._model = prompt, sample, settings, model
        words = model.encode(prompt)
        soft = model.soft
        first = model.tokenizer.prefix
        room = model.length - soft.tokens - len(first)
        if room < 2:
            raise UserError(
                f"{model.path}: its soft prompt of {soft.tokens} vectors fills the context of {model.length}"
            )
        # one that leaves no room keeps its end: half the context at least, more where few tokens are asked for
        self.cut = max(0, len(words) - (room - min(settings.max_new_tokens, room // 2))) if len(words) >= room else 0
        self.words = words[self.cut :]
        read = first + self.words
        self.begin = add_soft(read, soft)
        self._seen = set(read)
        self._generator = None if settings.greedy else make_generator(settings.seed, "generate", sample)
        self._growing = GrowingText(model.tokenizer.decode, read, settings.stops)
        self.ids: list[int] = []
        self.end: str | None = None

    @property
    def text(self) -> str:
        """What is written: once it has ended all, before that what no further token can change."""
        return self._growing.text if self.end else self._growing.shown

    def go_on(self, scores: torch.Tensor) -> None:
        """Write a token, by its scores [V]."""
        settings = self._settings
        token = choose_token(scores, self._seen, settings, self._generator)
        if token == self._model.tokenizer.eos:
            self._close("end")
            return
        self.ids.append(token)
        self._seen.add(token)
        self._growing.add(token)
        if self._growing.stopped:
            self._close("stop")
        elif len(self.ids) >= settings.max_new_tokens:
            self._close("length")
        elif len(self.begin) + len(self.ids) >= self._model.length:
            self._close("context")

    def _close(self, why: str) -> None:
        self._growing.finish()
        self.end = "stop" if self._growing.stopped else why


@torch.inference_mode()
def write_texts(model: LoadedModel, texts: Sequence[Text], after_token: Callable[[], None] = lambda: None) -> None:
    """Write all `texts` to their ends, as one batch.

    Args:
        after_token: called each time that all open texts have gone on by a token.

    Raises:
        UserError: the model's scores are not finite.
    """
    writing = Continuation(model.model, model.backend, len(texts))
    open_ = list(range(len(texts)))
    with model.backend.autocast():
        while open_:
            scores = writing.read(open_, [[*texts[i].begin, *texts[i].ids] for i in open_]).cpu()
            scores = scores[:, : model.ids]
            for row, i in zip(scores, open_, strict=True):
                if not bool(torch.isfinite(row).all()):
                    raise UserError(
                        f"{model.path}: its logits are not finite ({texts[i].prompt.where}, after "
                        f"{len(texts[i].ids)} new tokens); name an earlier checkpoint"
                    )
                texts[i].go_on(row)
            open_ = [i for i in open_ if texts[i].end is None]
            after_token()


def begin_texts(
    model: LoadedModel,
    prompts: Sequence[Prompt],
    settings: Settings,
    refuse_long: bool,
    note: Callable[[str], None],
) -> list[Text]:
    """The texts to write, before any token is: `settings.samples` of each prompt.

    Args:
        refuse_long: refuse a prompt that leaves no room in the context, instead of reading its end.
        note: takes a line about each prompt that is cut.

    Raises:
        UserError: a prompt does not fit.
    """
    texts = [Text(model, p, k, settings) for p in prompts for k in range(settings.samples)]
    cut = [t for t in texts if t.cut and t.sample == 0]
    for text in cut[:NAMED]:
        whole, room = len(text.words) + text.cut, model.length - model.soft.tokens - len(model.tokenizer.prefix)
        what = f"{text.prompt.where}: {whole:,} tokens leave no room in the context of {room:,}"
        if refuse_long:
            raise UserError(f"{what}; shorten the prompt, or let its end be read (without --refuse_long)")
        note(f"{what}; its last {len(text.words):,} are read")
    if len(cut) > NAMED:
        note(f"{len(cut) - NAMED} further prompts are cut in the same way")
    return texts


def write_batches(
    model: LoadedModel, texts: Sequence[Text], batch_size: int, after_batch: Callable[[int], object] = lambda done: None
) -> None:
    """Write all `texts` to their ends, those of like length together.

    Args:
        after_batch: called with the number of texts that are written.
    """
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i].begin))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        write_texts(model, [texts[i] for i in batch])
        after_batch(start + len(batch))
