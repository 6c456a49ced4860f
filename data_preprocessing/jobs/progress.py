"""The live line of a run: step, files, documents/s, tokens/s, time left."""

import time
from collections.abc import Callable
from typing import TextIO

from modelzoo.progress import LiveLine, format_duration


def printer(stream: TextIO | None = None) -> Callable[[str, int, int, dict | None], None]:
    """A `report` for job.run that prints the live line of the current step."""
    line = LiveLine(stream)
    state = {"step": "", "start": 0.0, "documents": 0, "tokens": 0, "begun_at": 0}

    def report(step: str, done: int, of: int, marker: dict | None) -> None:
        now = time.monotonic()
        if step != state["step"]:
            line.restart()
            state.update(step=step, start=now, documents=0, tokens=0, begun_at=done)
        if not of or (not line.live and marker is None):
            return
        splits = (marker or {}).get("splits", {}).values() if step == "encode" else ()
        state["documents"] += (
            (marker or {}).get("records", 0) if step == "extract" else sum(s["documents"] for s in splits)
        )
        state["tokens"] += sum(s["tokens"] for s in splits)
        if done < of and not line.is_due():
            return
        here, seconds = done - state["begun_at"], now - state["start"]
        line.show(describe(step, done, of, here, state["documents"], state["tokens"], seconds))
        if done == of:
            line.close()

    return report


def describe(step: str, done: int, of: int, here: int, documents: int, tokens: int, seconds: float) -> str:
    """One line; `here` = how many of `done` this run did (the rest was there before)."""
    parts = [f"{step:<9} {done:>5,}/{of:,}"]
    if documents and seconds > 0:
        what = "records" if step == "extract" else "documents"  # some of which are dropped later
        parts.append(f"{documents / seconds:,.0f} {what}/s")
    if tokens and seconds > 0:
        parts.append(f"{tokens / seconds:,.0f} tokens/s")
    if here and done < of:
        parts.append(f"{format_duration((of - done) * seconds / here)} left")
    elif done == of and here:
        parts.append(f"{format_duration(seconds)}")
    elif done == of:
        parts.append("done before")
    return "  ".join(parts)
