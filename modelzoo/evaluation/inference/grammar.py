"""Answers token by token: which tokens a task's options allow next. Pure Python, no model."""

from collections.abc import Callable, Hashable
from typing import NamedTuple

from modelzoo.data.tokenizer import Tokenizer
from modelzoo.evaluation.examples.example import Example
from modelzoo.evaluation.tasks.base import Option, Task


class Thread(NamedTuple):
    """One reading of the tokens so far: what its present piece still needs, and the labels it has noted."""

    rest: tuple[int, ...]
    state: Hashable
    labels: tuple[str, ...]
    ends: bool


class Answer:
    """An answer being written. Several readings are followed at once where label words begin alike."""

    def __init__(self, options: Callable[[Hashable], list[Option]], encode: Callable[[str], list[int]], eos: int):
        self._options, self._encode, self._eos = options, encode, eos
        self.ids: list[int] = []
        self.labels: tuple[str, ...] | None = None  # those noted, once the answer has ended
        self._threads = self._expand(None, ())

    @classmethod
    def begin(cls, task: Task, example: Example, tokenizer: Tokenizer) -> "Answer":
        return cls(lambda state: task.options(example, state), tokenizer.encode, tokenizer.eos)

    def _expand(self, state: Hashable, labels: tuple[str, ...]) -> list[Thread]:
        threads = []
        for option in self._options(state):
            noted = labels if option.label is None else (*labels, option.label)
            rest = (self._eos,) if option.text is None else tuple(self._encode(option.text))
            threads.append(Thread(rest, option.state, noted, option.text is None))
        return threads

    def allowed(self) -> list[int]:
        """Tokens that may come next, ascending."""
        return sorted({t.rest[0] for t in self._threads})

    def write(self, token: int) -> None:
        """Go on by an allowed token."""
        self.ids.append(token)
        threads = []
        for t in self._threads:
            if t.rest[0] != token:
                continue
            if len(t.rest) > 1:
                threads.append(t._replace(rest=t.rest[1:]))
            elif t.ends:
                self.labels, self._threads = t.labels, []
                return
            else:
                threads += self._expand(t.state, t.labels)
        self._threads = threads

    def forced(self) -> None:
        """Write what leaves no choice."""
        while self.labels is None and len(allowed := self.allowed()) == 1:
            self.write(allowed[0])
