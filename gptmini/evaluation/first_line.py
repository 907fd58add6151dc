"""A line of a run's own text: a prompt that its model can continue."""

from gptmini.config import DataConfig
from gptmini.data.corpus import open_corpus
from gptmini.data.datasets import needs_download
from gptmini.data.documents import STANDARD_INPUT
from gptmini.data.prepare import corpus_names
from gptmini.data.tokenizers import Tokenizer
from gptmini.errors import UserError

SHORTEST, LONGEST = 15, 60  # characters
WORDS = 0.75  # the fraction of letters in a sentence, at least


def first_line(data: DataConfig, tokenizer: Tokenizer, context_length: int) -> str:
    """A line near the beginning of the training text, to start a prompt with; "" where there is none.

    It begins with a letter or digit, and takes at most half of the context, which leaves room for more.
    """
    names = corpus_names(data)
    if STANDARD_INPUT in names or any(map(needs_download, names)):
        return ""
    try:
        chunk = next(open_corpus(data.corpus, data.text_field, data.errors).chunks())
        lines = [line.strip() for line in chunk.text().splitlines()]
    except (UserError, OSError, StopIteration):  # moved, changed or no UTF-8
        return ""
    lines = [line for line in lines if line.isprintable() and line[:1].isalnum()]
    fitting = [line for line in lines if SHORTEST <= len(line) <= LONGEST]
    # The first that reads like a sentence, else the first that fits, else the beginning of a longer one.
    sentences = [line for line in fitting if not line[0].islower() and _letters(line) > WORDS]
    line = next(iter(sentences or fitting), "") or _cut(max(lines, key=len, default=""), LONGEST)
    while line and len(tokenizer.encode(line)) > max(1, context_length // 2):
        line = _cut(line, len(line) // 2)
    return line


def _letters(line: str) -> float:
    """The fraction of a line's characters that are letters."""
    return sum(map(str.isalpha, line)) / len(line)


def _cut(line: str, length: int) -> str:
    """The first `length` characters of a line, up to the end of a word where there is one.

    >>> _cut("to be or not", 8), _cut("to be or not", 20), _cut("abcdef", 3)
    ('to be', 'to be or not', 'abc')
    """
    if len(line) <= length:
        return line
    return line[:length].rpartition(" ")[0].rstrip() or line[:length]
