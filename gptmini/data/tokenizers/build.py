"""The tokenizer that a config describes, for a corpus."""

from pathlib import Path

from gptmini.config import TokenizerConfig
from gptmini.data.corpus import Corpus
from gptmini.data.tokenizers.base import BPE_SAMPLE_BYTES, Tokenizer
from gptmini.data.tokenizers.byte_pair import BytePairTokenizer
from gptmini.data.tokenizers.gpt2 import load_gpt2, read_gpt2
from gptmini.errors import UserError


def build_tokenizer(config: TokenizerConfig, corpus: Corpus, train_bytes: int | None = None) -> Tokenizer:
    """The tokenizer that a config describes.

    `bpe` learns its merges from the first `train_bytes` bytes of the corpus (None: all of it), so that the
    validation text stays unseen, and from BPE_SAMPLE_BYTES of them at most, in pieces at even distances.
    `chars` needs the characters of the whole. Raises UserError where the text is not UTF-8, or the files of
    gpt2 or of a folder cannot be had.
    """
    if config.folder is not None:
        return _read_folder(config.kind, Path(config.folder).expanduser())
    if config.kind == "gpt2":
        return load_gpt2()
    texts = corpus.texts(BPE_SAMPLE_BYTES, train_bytes) if config.kind == "bpe" else corpus.texts()
    return Tokenizer.train(texts, config.kind, config.vocab_size, config.byte_fallback)


def _read_folder(kind: str, folder: Path) -> Tokenizer:
    """The byte-level BPE tokenizer in a folder that the config names."""
    try:
        found = read_gpt2(folder) if kind == "gpt2" else Tokenizer.load(folder)
    except UserError as error:
        raise UserError(f"tokenizer.folder = {error}") from None
    if not isinstance(found, BytePairTokenizer):
        raise UserError(f"tokenizer.folder = {folder}: holds a tokenizer of characters, not of byte pairs")
    return found
