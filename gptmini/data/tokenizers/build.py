"""The tokenizer that a config describes: learned from the corpus, read from a folder, or GPT-2's own."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from tiktoken_ext import openai_public

from gptmini.config import TokenizerConfig
from gptmini.data.corpus import Corpus
from gptmini.data.datasets import cache_folder
from gptmini.data.tokenizers.base import BPE_SAMPLE_BYTES, Tokenizer
from gptmini.data.tokenizers.byte_pair import BytePairTokenizer
from gptmini.errors import UserError, is_machine_error

GPT2_DIGEST = "2120503ab28e3cfede38e72fa4ead72c5f0b5a21622586db74483a4e0370b877"


def build_tokenizer(config: TokenizerConfig, corpus: Corpus, train_bytes: int | None = None) -> Tokenizer:
    """The tokenizer that a config describes.

    `bpe` learns its merges from the first `train_bytes` bytes of the corpus (None: all of it), so that the
    validation text stays unseen, and from BPE_SAMPLE_BYTES of them at most, in pieces at even distances.
    `chars` needs the characters of the whole. Raises UserError where the text is not UTF-8, or the files of
    gpt2 or of a folder cannot be had.
    """
    if config.folder is not None:
        try:
            return _read_byte_pairs(Path(config.folder), config.kind)
        except UserError as error:
            raise UserError(f"tokenizer.folder = {error}") from None
    if config.kind == "gpt2":
        return load_gpt2()
    texts = corpus.texts(BPE_SAMPLE_BYTES, train_bytes) if config.kind == "bpe" else corpus.texts()
    return Tokenizer.train(texts, config.kind, config.vocab_size, config.byte_fallback)


def load_gpt2() -> Tokenizer:
    """GPT-2's own tokenizer: from the cache folder, or as tiktoken finds or downloads it.

    Raises UserError with what to do where its files cannot be had.
    """
    folder = cache_folder() / "gpt2"
    if folder.is_dir():
        return _read_byte_pairs(folder, "gpt2")
    try:
        gpt2 = openai_public.gpt2()
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; ValueError is a wrong digest
        if is_machine_error(error):  # where tiktoken has the files already
            raise
        raise UserError(
            f"tokenizer.kind = gpt2: its files cannot be downloaded ({type(error).__name__}); offline put "
            f"GPT-2's vocab.json and merges.txt into {folder} or a folder named by tokenizer.folder, or its "
            "vocab.bpe and encoder.json as 6d1cbeee0f20b3d9449abfede4726ed8212e3aee and "
            "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6 into the folder that TIKTOKEN_CACHE_DIR names, or use "
            "tokenizer.kind = bpe or bytes"
        ) from None
    ids: dict[bytes, int] = gpt2["mergeable_ranks"]
    tokens = sorted(ids, key=ids.__getitem__)
    merges = [recover_merge(token, ids) for token in tokens if len(token) > 1]
    return BytePairTokenizer([*tokens, b""], merges, gpt2["special_tokens"])


def _read_byte_pairs(folder: Path, kind: str) -> Tokenizer:
    """The byte-level BPE tokenizer in a folder; kind gpt2 takes GPT-2's own alone."""
    found = Tokenizer.load(folder)
    if not isinstance(found, BytePairTokenizer):
        raise UserError(f"{folder}: holds a tokenizer of characters, not of byte pairs")
    if kind == "gpt2" and found.digest != GPT2_DIGEST:
        raise UserError(
            f"{folder}: holds another tokenizer than GPT-2's (sha256 {found.digest[:16]}..., not "
            f"{GPT2_DIGEST[:16]}...); tokenizer.kind = bpe with tokenizer.folder takes any byte-level BPE"
        )
    return found


def recover_merge(token: bytes, ids: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens that are merged into this one: what earlier merges make of its bytes.

    >>> recover_merge(b"the", {b"t": 0, b"h": 1, b"e": 2, b"he": 3, b"the": 4})
    (b't', b'he')
    """
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        # the pair with the lowest id was merged first
        pairs = [left + right for left, right in pairwise(parts)]
        i = min(range(len(pairs)), key=lambda i: ids.get(pairs[i], len(ids)))
        parts[i : i + 2] = [pairs[i]]
    return parts[0], parts[1]
