"""`run.py generate`: prompts in, texts out: to a terminal as they grow, or as JSON lines."""

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from modelzoo.config.errors import UserError
from modelzoo.entry import escape_controls
from modelzoo.files import replacing
from modelzoo.generation.load import LoadedModel, load_model
from modelzoo.generation.prompts import STDIN, Prompt
from modelzoo.generation.settings import Settings
from modelzoo.generation.write import WHY, Text, begin_texts, write_batches, write_texts
from modelzoo.progress import Progress


class Request(NamedTuple):
    """What the command line asks for.

    Attributes:
        prompts: None: whoever is at the terminal gives them.
        out: a file of JSON lines, "-" for these on standard output; None: texts alone, there.
        refuse_long: refuse a prompt that leaves no room in the context, instead of reading its end.
        dtype: of weights, float32 or bfloat16.
    """

    path: str
    prompts: list[Prompt] | None
    settings: Settings
    batch_size: int = 8
    out: str | None = None
    params: str | None = None
    tokenizer: str | None = None
    target: str = "auto"
    refuse_long: bool = False
    dtype: str = "float32"


def generate_texts(request: Request) -> None:
    """Write what the request asks for.

    Raises:
        UserError: a model, tokenizer or prompt that does not fit, or `out` exists.
    """
    model = load_model(request.path, request.params, request.tokenizer, request.target, request.dtype)
    lines = [f"model      {model.path}", model.choice.describe(), *(f"           {note}" for note in model.notes)]
    _say("\n".join(lines))
    if request.prompts is None:
        _converse(model, request)
        return
    texts = _begin(model, request.prompts, request)
    begin = time.perf_counter()
    if request.out is None and len(texts) == 1:
        _stream(model, texts[0])
    else:
        _write_batches(model, texts, request)
    tokens, seconds = sum(len(t.ids) for t in texts), time.perf_counter() - begin
    full = sum(t.end == "context" for t in texts)
    if full:
        _say(f"note       {full} of {len(texts)} texts end where the context of {model.length} tokens is full")
    _say(f"wrote      {len(texts)} texts, {tokens} tokens, {tokens / max(seconds, 1e-9):.0f} tokens/s")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _begin(model: LoadedModel, prompts: Sequence[Prompt], request: Request) -> list[Text]:
    """The texts to write, before any token is; prompts that are cut are named, or refused."""
    note = lambda line: _say(f"note       {line}")
    return begin_texts(model, prompts, request.settings, request.refuse_long, note)


def _stream(model: LoadedModel, text: Text) -> None:
    """Print one text as it grows."""
    shown, plain = 0, not sys.stdout.isatty()

    def show() -> None:
        nonlocal shown
        grown = text.text
        part, shown = grown[shown:], max(shown, len(grown))
        print(part if plain else escape_controls(part, "\n\t"), end="", flush=True)

    try:
        write_texts(model, [text], show)
    finally:
        if shown or text.end:
            print(flush=True)


def _write_batches(model: LoadedModel, texts: list[Text], request: Request) -> None:
    """Write all texts, those of like length together, and print or store them in the order of their prompts."""
    with _opening(request.out) as file:
        live = Progress(len(texts))
        tokens = lambda done: live.update(done, f"{sum(len(t.ids) for t in texts)} tokens")
        write_batches(model, texts, request.batch_size, tokens)
        live.close()
        for text in texts:
            if file is not None:
                file.write(json.dumps(make_record(text, request.settings), ensure_ascii=False) + "\n")
                continue
            sample = f", sample {text.sample}" if request.settings.samples > 1 else ""
            shown = text.text if not sys.stdout.isatty() else escape_controls(text.text, "\n\t")
            print(f"--- {text.prompt.where}{sample}\n{shown}")


@contextlib.contextmanager
def _opening(out: str | None) -> Iterator[Any]:
    """What JSON lines go to; a file is there when all of them are in it, and not before."""
    if out in (None, STDIN):
        yield None if out is None else sys.stdout
        return
    with replacing(out, durable=True) as temporary, open(temporary, "w", encoding="utf-8") as file:
        yield file
    _say(f"wrote      {out}")


def make_record(text: Text, settings: Settings) -> dict[str, Any]:
    """A text as a line of JSON."""
    row = text.prompt.row or {}
    return {
        **({"id": row["id"]} if "id" in row else {}),
        "prompt": text.prompt.text,
        "text": text.text,
        **({} if settings.greedy else {"sample": text.sample, "seed": settings.seed}),
        "end": text.end,
        "tokens": len(text.ids),
        "prompt_tokens": len(text.words),
        "prompt_tokens_cut": text.cut,
    }


def _converse(model: LoadedModel, request: Request) -> None:
    """Take prompts from a terminal until its end. Each stands alone: nothing of earlier ones is read."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - input() edits lines and knows earlier ones by it
    _say("           a prompt a line, each on its own; Ctrl-C ends a text, Ctrl-D all")
    while True:
        try:
            line = input("> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            continue
        if not line.strip():
            continue
        try:
            for text in _begin(model, [Prompt(line, "the prompt")], request):
                with contextlib.suppress(KeyboardInterrupt):
                    _stream(model, text)
                if text.end not in (None, "end"):
                    _say(f"           ({WHY[text.end]})")
        except UserError as e:
            if "not finite" in str(e):
                raise
            _say(f"error: {e}")
