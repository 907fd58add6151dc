"""What is worth knowing about a corpus before training on it: documents, repetition, bytes per token."""

from array import array
from collections.abc import Iterable

import numpy as np

from gptmini.data.corpus import Chunk, Corpus
from gptmini.data.dedup import split_paragraphs
from gptmini.data.token_files import TokenData
from gptmini.data.tokenizers import load_gpt2
from gptmini.errors import UserError

SAMPLE_BYTES = 4 << 20


def describe(corpus: Corpus, data: TokenData) -> dict[str, int | float | None]:
    """Statistics of a corpus and the tokens that `prepare` made of it, from one more pass over the text."""
    contents = corpus.contents
    tokens = len(data.train) + len(data.val)
    return {
        "documents": len(contents.document_bytes),
        "text_bytes": contents.total_bytes,
        "longest_document_bytes": int(contents.document_bytes.max()),
        # Of the bytes: paragraphs that occurred earlier in the corpus.
        "repeated_share": _repeated_bytes(corpus.chunks()) / contents.total_bytes,
        "tokens": tokens,
        "bytes_per_token": (data.meta.train_bytes + data.meta.val_bytes) / tokens,
        # Of a sample; None where GPT-2's files cannot be had.
        "gpt2_bytes_per_token": _gpt2_bytes_per_token(corpus),
    }


def _repeated_bytes(chunks: Iterable[Chunk]) -> int:
    """Bytes of paragraphs that occurred earlier; needs 16 bytes of memory for each paragraph."""
    hashes, lengths = array("q"), array("q")
    waiting = b""
    for chunk in chunks:
        *pieces, waiting = split_paragraphs(waiting, chunk)
        texts = [text for text in map(bytes.strip, pieces) if text]
        hashes.extend(map(hash, texts))
        lengths.extend(map(len, texts))
    _, first = np.unique(np.frombuffer(hashes, dtype=np.int64), return_index=True)
    return sum(lengths) - int(np.frombuffer(lengths, dtype=np.int64)[first].sum())


def _gpt2_bytes_per_token(corpus: Corpus) -> float | None:
    try:
        gpt2 = load_gpt2()
        texts = list(corpus.texts(SAMPLE_BYTES))
    except UserError:
        return None
    return sum(len(text.encode()) for text in texts) / sum(len(gpt2.encode(text)) for text in texts)
