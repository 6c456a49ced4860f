"""The live line of a run: step, files, documents/s, tokens/s, time left."""

import sys
import time
from collections.abc import Callable


def printer(stream=None) -> Callable[[str, int, int, dict | None], None]:
    """A `show` for job.run: rewrites one line on a terminal, else prints a line now and then."""
    stream = stream or sys.stderr
    live = stream.isatty()
    state = {"step": "", "start": 0.0, "said": 0.0, "documents": 0, "tokens": 0, "begun_at": 0, "open": False}

    def show(step: str, done: int, of: int, marker: dict | None) -> None:
        now = time.monotonic()
        if step != state["step"]:
            if state["open"]:
                stream.write("\n")
            state.update(step=step, start=now, said=0.0, documents=0, tokens=0, begun_at=done, open=False)
        if not of or (not live and marker is None):
            return
        state["documents"] += (
            (marker or {}).get("records", 0)
            if step == "extract"
            else sum(s["documents"] for s in (marker or {}).get("splits", {}).values() if step == "encode")
        )
        state["tokens"] += sum(s["tokens"] for s in (marker or {}).get("splits", {}).values() if step == "encode")
        if not live and done < of and now - state["said"] < 10:
            return
        state["said"] = now
        line = describe(
            step, done, of, done - state["begun_at"], state["documents"], state["tokens"], now - state["start"]
        )
        stream.write(("\r\x1b[K" + line) if live else line + "\n")
        state["open"] = live
        if live and done == of:
            stream.write("\n")
            state["open"] = False
        stream.flush()

    return show


def describe(step: str, done: int, of: int, here: int, documents: int, tokens: int, seconds: float) -> str:
    """One line; `here` = how many of `done` this run did (the rest was there before)."""
    parts = [f"{step:<9} {done:>5,}/{of:,}"]
    if documents and seconds > 0:
        parts.append(f"{documents / seconds:,.0f} documents/s")
    if tokens and seconds > 0:
        parts.append(f"{tokens / seconds:,.0f} tokens/s")
    if here and done < of:
        parts.append(f"{clock((of - done) * seconds / here)} left")
    elif done == of and here:
        parts.append(f"{clock(seconds)}")
    elif done == of:
        parts.append("done before")
    return "  ".join(parts)


def clock(seconds: float) -> str:
    seconds = int(seconds + 0.5)
    return (
        f"{seconds // 3600}:{seconds % 3600 // 60:02d}:{seconds % 60:02d}"
        if seconds >= 3600
        else f"{seconds // 60}:{seconds % 60:02d}"
    )
