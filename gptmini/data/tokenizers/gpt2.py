"""GPT-2's own tokenizer: the merges that OpenAI learned, from a folder, the cache, or as tiktoken gets them.

Nothing differs from byte_pair.py but where the merges come from.
"""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from tiktoken_ext import openai_public

from gptmini.data.datasets import cache_folder
from gptmini.data.tokenizers.base import Tokenizer
from gptmini.data.tokenizers.byte_pair import BytePairTokenizer
from gptmini.errors import UserError

GPT2_DIGEST = "2120503ab28e3cfede38e72fa4ead72c5f0b5a21622586db74483a4e0370b877"


def read_gpt2(folder: Path) -> Tokenizer:
    """GPT-2's tokenizer in a folder; UserError where the folder holds none or another one."""
    found = Tokenizer.load(folder)
    if found.digest != GPT2_DIGEST:
        raise UserError(
            f"{folder}: holds another tokenizer than GPT-2's (sha256 {found.digest[:16]}..., not "
            f"{GPT2_DIGEST[:16]}...); tokenizer.kind = bpe with tokenizer.folder takes any byte-level BPE"
        )
    return found


def load_gpt2() -> Tokenizer:
    """GPT-2's own tokenizer: from the cache folder, or as tiktoken finds or downloads it.

    Raises UserError with what to do where its files cannot be had.
    """
    folder = cache_folder() / "gpt2"
    if folder.is_dir():
        return read_gpt2(folder)
    try:
        gpt2 = openai_public.gpt2()
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; ValueError is a wrong digest
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
