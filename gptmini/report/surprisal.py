"""Surprisal, -log2 p, of each token in the windows of the validation text with most and least loss."""

from typing import Any, NamedTuple

import numpy as np
import torch

from gptmini.data.token_files import TokenData
from gptmini.data.tokenizers import Tokenizer
from gptmini.evaluation.window_losses import evaluate_windows
from gptmini.model import GPT
from gptmini.training.runtime import Runtime

TOKENS = 1 << 16  # of the validation text at most: seconds instead of minutes
ALTERNATIVES = 5


class Piece(NamedTuple):
    """The text of one token, or of several where each is a part of one character."""

    text: str
    bits: float  # surprisal: -log2 of the probability that the model gave it
    alternatives: list[tuple[str, float]]  # the tokens with the highest probability here


class ShownWindow(NamedTuple):
    """A window of validation text, token by token."""

    loss: float  # nats per token
    bits_per_byte: float
    pieces: list[Piece]


def extreme_windows(
    model: GPT, data: TokenData, runtime: Runtime, count: int = 2
) -> tuple[list[ShownWindow], list[ShownWindow]]:
    """The `count` windows of the validation text with the highest loss, and those with the lowest."""
    length = model.config.context_length
    found = evaluate_windows(model, data.val, data.tokenizer, length, runtime, count=count, max_tokens=TOKENS)
    worst, best = (
        [
            ShownWindow(w.loss, w.bits_per_byte, _pieces(model, data.val, w.start, data.tokenizer, runtime))
            for w in windows
        ]
        for windows in (found.worst, found.best)
    )
    return worst, best


@torch.inference_mode()
def _pieces(
    model: GPT, stream: np.ndarray, start: int, tokenizer: Tokenizer, runtime: Runtime
) -> list[Piece]:
    """The tokens of the window whose first target is at index `start` of the stream."""
    window = stream[start - 1 : start + model.config.context_length].astype(np.int64)
    targets = window[1:].tolist()
    logits = model(runtime.to_device(torch.from_numpy(window[None, :-1])))[0].float()  # (T, V)
    log_probabilities = logits.log_softmax(dim=-1).cpu()  # (T, V)
    top = log_probabilities.topk(min(ALTERNATIVES, log_probabilities.shape[-1]))
    pieces: list[Piece] = []
    # A character may take several tokens: collect bytes until they decode, and add up the bits.
    begun, bits, alternatives = b"", 0.0, None
    for t, token in enumerate(targets):
        begun += tokenizer.tokens[token] or "⏹".encode()  # an end of text has no bytes
        bits -= log_probabilities[t, token].item() / np.log(2)
        alternatives = alternatives or [
            (tokenizer.tokens[i].decode(errors="replace") or "⏹", float(np.exp(value)))
            for i, value in zip(top.indices[t].tolist(), top.values[t].tolist(), strict=True)
        ]
        if t + 1 < len(targets) and _ends_inside_a_character(begun):
            continue
        pieces.append(Piece(begun.decode(errors="replace"), bits, alternatives))
        begun, bits, alternatives = b"", 0.0, None
    return pieces


def _ends_inside_a_character(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return False


def as_json(windows: list[ShownWindow]) -> list[dict[str, Any]]:
    """The windows as report.js reads them."""
    return [
        {
            "loss": window.loss,
            "bits_per_byte": window.bits_per_byte,
            "pieces": [[p.text, round(p.bits, 3), p.alternatives] for p in window.pieces],
        }
        for window in windows
    ]
