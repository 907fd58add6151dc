"""Token ids of one generated row, joined to text: whole characters only, cut where a stop string begins."""

import codecs
from collections.abc import Sequence

from gptmini.data.tokenizers import Tokenizer
from gptmini.errors import UserError


class StreamDecoder:
    """The text of one row: bytes of tokens joined to characters, and cut where a stop string begins."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        stop = (stop,) if isinstance(stop, str) else stop
        if "" in stop:
            raise UserError("a stop string is empty, and would end every text at once: leave it out")
        self.tokenizer = tokenizer
        self.stop = stop
        self.characters = codecs.getincrementaldecoder("utf-8")("replace")
        self.pending = ""  # decoded and not yet taken
        self.ended = False

    def add(self, token: int) -> bool:
        """Join a token to the text; returns whether the text ends with it."""
        if token == self.tokenizer.end_of_text:
            return True
        self.pending += self.characters.decode(self.tokenizer.decode_bytes([token]))
        found = [place for stop in self.stop if (place := self.pending.find(stop)) >= 0]
        if found:
            self.pending, self.ended = self.pending[: min(found)], True
        return self.ended

    def pop(self) -> str:
        """The text that is certain by now, without what was taken before."""
        held = 0 if self.ended else max((_overlap(self.pending, stop) for stop in self.stop), default=0)
        cut = len(self.pending) - held
        piece, self.pending = self.pending[:cut], self.pending[cut:]
        return piece

    def flush(self) -> str:
        """What is left when no more tokens come; bytes of an unfinished character become U+FFFD."""
        unfinished = "" if self.ended else self.characters.decode(b"", final=True)
        piece, self.pending = self.pending + unfinished, ""
        return piece


def _overlap(text: str, stop: str) -> int:
    """How many of the last characters of `text` may be the beginning of `stop`.

    >>> _overlap("the en", "end"), _overlap("the en", "new")
    (2, 1)
    """
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
