"""Text of token ids that come one by one: whole characters, up to the first stop. No torch."""

from collections.abc import Callable, Sequence

BEFORE = 8  # tokens of the prompt that are decoded along: what some decoders do to a first token is undone so
_HALF = "\ufffd"  # what an unfinished character decodes to


class GrowingText:
    """A text that grows token by token.

    Args:
        decode: the text of ids.
        prompt: ids that the text follows.
        stops: texts that end it.

    Attributes:
        text: what is settled so far. stopped: whether a stop has come; the text ends before it.
    """

    def __init__(self, decode: Callable[[list[int]], str], prompt: Sequence[int], stops: Sequence[str] = ()):
        self._decode, self._stops = decode, [s for s in stops if s]
        self._ids = list(prompt[-BEFORE:])
        self._from, self._settled = 0, len(self._ids)  # ids that the next decoding begins at; ids whose text is settled
        self.text, self.stopped = "", False

    def add(self, token: int) -> None:
        """Go on by a token."""
        self._ids.append(token)
        self._settle(final=False)

    def finish(self) -> None:
        """Settle what waits for more: a character that stays unfinished is U+FFFD."""
        if not self.stopped:
            self._settle(final=True)

    @property
    def shown(self) -> str:
        """The text without an end that may become a stop."""
        if self.stopped:
            return self.text
        most = max((len(s) for s in self._stops), default=1) - 1
        for n in range(min(most, len(self.text)), 0, -1):
            if any(s.startswith(self.text[-n:]) for s in self._stops):
                return self.text[:-n]
        return self.text

    def _settle(self, final: bool) -> None:
        before = self._decode(self._ids[self._from : self._settled])
        now = self._decode(self._ids[self._from :])
        if not final and (len(now) <= len(before) or now.endswith(_HALF)):
            return
        self._from, self._settled = self._settled, len(self._ids)
        first = max(0, len(self.text) - max((len(s) for s in self._stops), default=0))
        self.text += now[len(before) :]
        found = [at for s in self._stops if (at := self.text.find(s, first)) >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True
