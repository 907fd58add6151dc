"""Which tokens may come next in a text, so that its bytes are UTF-8 whatever the weights are."""

import codecs
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from gptmini.data.tokenizers import Tokenizer


def forbidden_tokens(
    tokenizer: Tokenizer, vocab_size: int, device: torch.device, unfinished: Sequence[bytes | None]
) -> Tensor:
    """True for each token that cannot come next; bool (V,) or, where the B texts differ, (B, V).

    `unfinished` are the bytes of the character that each text ends within, b"" between two characters, and
    None where any bytes may follow. Ids that the tokenizer does not have, as they only pad the embedding to
    a round number, never come next.
    """
    masks = [_mask(tokenizer, vocab_size, device, begun and _representative(begun)) for begun in unfinished]
    return masks[0] if all(mask is masks[0] for mask in masks) else torch.stack(masks)


def _representative(begun: bytes) -> bytes:
    """The beginning of a character that the same bytes may follow: 7 stand for all 17,651 that there are.

    >>> _representative("€".encode()[:2]), _representative("é".encode()[:1])
    (b'\\xc3', b'\\xc3')
    """
    if begun in (b"\xe0", b"\xed", b"\xf0", b"\xf4"):  # these restrict the second byte
        return begun
    # The first byte says how many there are: 2 to 4.
    missing = 2 + (begun[0] >= 0xE0) + (begun[0] >= 0xF0) - len(begun)
    return {1: b"\xc3", 2: b"\xe1", 3: b"\xf1"}[missing]


def _mask(tokenizer: Tokenizer, vocab_size: int, device: torch.device, begun: bytes | None) -> Tensor:
    known, key = _known.setdefault(tokenizer, {}), (vocab_size, device, begun)
    if key not in known:
        tokens = tokenizer.tokens[:vocab_size]
        forbidden = [not (begun is None or _continues(begun, token)) for token in tokens]
        known[key] = torch.tensor(forbidden + [True] * (vocab_size - len(tokens)), device=device)
    return known[key]


# The masks so far, as long as their tokenizer lives: with GPT-2's vocabulary one takes 20 ms.
_known: WeakKeyDictionary[Tokenizer, dict[Any, Tensor]] = WeakKeyDictionary()


def _continues(begun: bytes, token: bytes) -> bool:
    """Whether the bytes together begin a UTF-8 text. A special token has none, and stands between characters.

    >>> _continues(b"\\xe2", b"\\x82"), _continues(b"\\xe2", b"a"), _continues(b"\\xe2", b"")
    (True, False, False)
    """
    if begun and not b"\x80" <= token < b"\xc0":  # only a continuation byte goes on with a character
        return False
    try:
        # False: the last character may be unfinished
        _, decoded = codecs.utf_8_decode(begun + token, "strict", False)
    except UnicodeDecodeError:
        return False
    # A surrogate, which is no character, is refused by the decoder only at its third byte.
    return not b"\xed\xa0" <= (begun + token)[decoded:] < b"\xee"
