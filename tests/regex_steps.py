"""A backtracking matcher that counts its steps, to tell how the time of a pattern grows without a clock.

It runs the tree that `re` itself parses, in the order in which `re` tries things, without its shortcuts.
"""

import re
from collections.abc import Callable, Iterator
from itertools import chain, takewhile
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

SAMPLES = {"SPACE": " ", "DIGIT": "1", "WORD": "a", "NOT_SPACE": "a", "NOT_DIGIT": "a", "NOT_WORD": "-"}
CATEGORY = {"SPACE": r"\s", "DIGIT": r"\d", "WORD": r"\w", "NOT_SPACE": r"\S", "NOT_DIGIT": r"\D", "NOT_WORD": r"\W"}
ONE = ("LITERAL", "NOT_LITERAL", "ANY", "IN")
REPEATS = ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT")
Then = Callable[[int], int]  # goes on at a place; where the match ends, or -1


class TooManyStepsError(Exception):
    pass


class Steps:
    """A pattern that counts.

    Args:
        pattern: a compiled pattern; one of bytes is run on the same characters.
        bound: a repeat {m,n} ends after m + `bound` repeats, so that short texts show how it grows; None: after n.
        most: steps after which it gives up.
    """

    def __init__(self, pattern: re.Pattern, bound: int | None = None, most: int = 30_000):
        self.flags, self.bound, self.most, self.count = pattern.flags, bound, most, 0
        self.nodes = list(parser.parse(pattern.pattern, pattern.flags & ~re.DEBUG))
        kind = re.ASCII if isinstance(pattern.pattern, bytes) or pattern.flags & re.ASCII else re.UNICODE
        self.categories = {name: re.compile(text, kind) for name, text in CATEGORY.items()}
        self.groups: dict[int, tuple[int, int]] = {}

    def spans(self, text: str, use: str) -> list[tuple[int, int]]:
        """What `use` (finditer, match or fullmatch) finds in a text."""
        self.text, self.count, self.groups = text, 0, {}
        if use != "finditer":
            end = self._run(self.nodes, 0, lambda i: i if use == "match" or i == len(text) else -1)
            return [(0, end)] if end >= 0 else []
        found: list[tuple[int, int]] = []
        at, after_empty = 0, False
        while at <= len(text):
            # As `re`: an empty match may not follow another at the same place.
            end = self._run(self.nodes, at, lambda i, no=at if after_empty else -1: -1 if i == no else i)
            if end < 0:
                at, after_empty = at + 1, False
                continue
            found.append((at, end))
            at, after_empty = end, end == at
        return found

    def _step(self) -> None:
        self.count += 1
        if self.count > self.most:
            raise TooManyStepsError

    def _is_one(self, op: str, value: Any, i: int) -> bool:
        self._step()
        if i >= len(self.text):
            return False
        char = self.text[i]
        forms = {char, char.lower(), char.upper()} if self.flags & re.IGNORECASE else {char}
        return any(self._fits(op, value, form) for form in forms)

    def _fits(self, op: str, value: Any, char: str) -> bool:
        if op == "LITERAL":
            return ord(char) == value
        if op == "NOT_LITERAL":
            return ord(char) != value
        if op == "ANY":
            return char != "\n" or bool(self.flags & re.DOTALL)
        if op == "IN":
            negated = str(value[0][0]) == "NEGATE"
            return negated != any(self._fits(str(o), v, char) for o, v in value[negated:])
        if op == "RANGE":
            return value[0] <= ord(char) <= value[1]
        return bool(self.categories[str(value).removeprefix("CATEGORY_")].match(char))

    def _run(self, nodes: list, i: int, then: Then) -> int:
        """Where a match of `nodes` from place `i`, followed by `then`, ends; -1 where there is none."""
        if not nodes:
            return then(i)
        (op, value), rest = nodes[0], nodes[1:]
        op = str(op)

        def after(j: int) -> int:
            return self._run(rest, j, then)

        if op in ONE:
            return after(i + 1) if self._is_one(op, value, i) else -1
        if op in REPEATS:
            return self._repeat(op, *value, i, after)
        if op == "SUBPATTERN":
            return self._group(value[0], list(value[3]), i, after)
        if op == "ATOMIC_GROUP":
            end = self._run(list(value), i, lambda j: j)
            return after(end) if end >= 0 else -1
        if op == "BRANCH":
            ends = (self._run(list(branch), i, after) for branch in value[1])
            return next((end for end in ends if end >= 0), -1)
        if op in ("ASSERT", "ASSERT_NOT"):
            begin = i if value[0] > 0 else i - value[1].getwidth()[0]
            found = begin >= 0 and self._run(list(value[1]), begin, lambda j: j if value[0] > 0 or j == i else -1) >= 0
            return after(i) if found == (op == "ASSERT") else -1
        if op == "AT":
            return after(i) if self._is_at(str(value), i) else -1
        if op == "GROUPREF":
            begin, end = self.groups.get(value, (0, -1))
            self.count += max(0, end - begin)
            return after(i + end - begin) if end >= 0 and self.text.startswith(self.text[begin:end], i) else -1
        raise NotImplementedError(op)

    def _group(self, number: int | None, nodes: list, i: int, after: Then) -> int:
        before = self.groups.get(number or 0)

        def close(j: int) -> int:
            if number is not None:
                self.groups[number] = (i, j)
            return after(j)

        end = self._run(nodes, i, close)
        if end < 0 and number is not None and before is not None:
            self.groups[number] = before
        return end

    def _repeat(self, op: str, least: int, most: int, body: Any, i: int, after: Then) -> int:
        nodes = list(body)
        if self.bound is not None and most != parser.MAXREPEAT:
            most = min(most, least + self.bound)
        if len(nodes) == 1 and str(nodes[0][0]) in ONE:
            kind, value = str(nodes[0][0]), nodes[0][1]
            fitting = (j + 1 for j in takewhile(lambda j: self._is_one(kind, value, j), iter(range(i, i + most))))
            if op == "MIN_REPEAT":
                places: Iterator[int] = (j for j in chain([i], fitting) if j >= i + least)
            else:
                every = [i, *fitting][least:]
                places = iter(every[-1:] if op == "POSSESSIVE_REPEAT" else every[::-1])
            return next((end for j in places if (end := after(j)) >= 0), -1)
        if op == "POSSESSIVE_REPEAT":
            count = 0
            while count < most and (end := self._run(nodes, i, lambda j: j)) >= 0 and (end > i or count < least):
                i, count = end, count + 1
            return after(i) if count >= least else -1

        def more(j: int, count: int) -> int:
            self._step()
            if op == "MIN_REPEAT" and count >= least and (end := after(j)) >= 0:
                return end
            if count < most:
                end = self._run(nodes, j, lambda k: more(k, count + 1) if k > j or count < least else -1)
                if end >= 0:
                    return end
            return after(j) if op == "MAX_REPEAT" and count >= least else -1

        return more(i, 0)

    def _is_at(self, where: str, i: int) -> bool:
        self._step()
        if where in ("AT_BEGINNING", "AT_BEGINNING_STRING"):
            multiline = where == "AT_BEGINNING" and self.flags & re.MULTILINE
            return i == 0 or bool(multiline and self.text[i - 1] == "\n")
        if where == "AT_END":
            return i == len(self.text) or (self.text[i] == "\n" and bool(i == len(self.text) - 1 or self.flags & 8))
        if where == "AT_END_STRING":
            return i == len(self.text)
        word = self.categories["WORD"]
        sides = [0 <= j < len(self.text) and bool(word.match(self.text[j])) for j in (i - 1, i)]
        return (sides[0] != sides[1]) == (where == "AT_BOUNDARY")


def is_unbounded(nodes: Any) -> bool:
    """Whether anything in a tree repeats without a bound; without that, a match from one place takes constant time."""
    return "MAXREPEAT" in str(list(nodes))


def example(nodes: Any) -> str:
    """A short text that the nodes match, as far as that can be told."""
    return "".join(_example(str(op), value) for op, value in nodes)


def _example(op: str, value: Any) -> str:
    if op in ("LITERAL", "RANGE", "CATEGORY", "NOT_LITERAL", "ANY", "IN"):
        return next(samples(op, value))
    if op in REPEATS:
        return example(value[2]) * max(1, value[0])
    if op in ("SUBPATTERN", "ATOMIC_GROUP"):
        return example(value[3] if op == "SUBPATTERN" else value)
    return example(value[1][0]) if op == "BRANCH" else ""


def samples(op: str, value: Any) -> Iterator[str]:
    """Characters that a node of one character matches."""
    if op == "LITERAL":
        yield chr(value)
    elif op == "RANGE":
        yield chr(value[0])
    elif op == "CATEGORY":
        yield SAMPLES[str(value).removeprefix("CATEGORY_")]
    elif op == "IN" and str(value[0][0]) != "NEGATE":
        for inner, content in value:
            yield from samples(str(inner), content)
    else:
        yield "a"


def attacks(nodes: Any) -> tuple[set[str], set[str]]:
    """(what may stand before, what is repeated) in texts that could take a pattern long."""
    heads, pumps = {""}, set()

    def visit(nodes: Any, head: str) -> None:
        for k, (op, value) in enumerate(nodes):
            op, before = str(op), head + example(nodes[:k])
            if op != "LITERAL" or k + 1 == len(nodes) or str(nodes[k + 1][0]) != "LITERAL":
                pumps.add(example(nodes[: k + 1]))
            if op in REPEATS:
                heads.add(before)
                pumps.add(example(value[2]))
                visit(value[2], before)
            elif op in ("SUBPATTERN", "ATOMIC_GROUP"):
                visit(value[3] if op == "SUBPATTERN" else value, before)
            elif op in ("ASSERT", "ASSERT_NOT"):
                visit(value[1], before)
            elif op == "BRANCH":
                for branch in value[1]:
                    visit(branch, before)
            elif op == "IN":
                pumps.update(list(samples(op, value))[:4])

    visit(list(nodes), "")
    return heads, {pump for pump in pumps if pump}
