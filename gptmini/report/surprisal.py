"""Surprisal, -log2 p, of each token in the windows of the validation text with most and least loss."""

import codecs
from typing import Any

import numpy as np
import torch

from gptmini.data.token_files import TokenData, TokenStream
from gptmini.data.tokenizers import Tokenizer
from gptmini.evaluation.evaluate import require_finite_loss
from gptmini.evaluation.window_losses import evaluate_windows
from gptmini.model import GPT
from gptmini.training.runtime import Runtime

TOKENS = 1 << 16  # of the validation text at most: seconds instead of minutes
ALTERNATIVES = 5


def extreme_windows(model: GPT, data: TokenData, runtime: Runtime) -> dict[str, list[dict[str, Any]]]:
    """The `worst` two windows of the validation text, with the highest loss, and the `best`, for report.js.

    Each window has its `loss` in nats per token, `bits_per_byte`, and `pieces`: of each token (or of several
    where each is a part of one character) the text, the surprisal in bits, and as (text, probability) the
    tokens that the model thought most probable there.
    """
    length = model.config.context_length
    found = evaluate_windows(model, data.val, data.tokenizer, length, runtime, count=2, max_tokens=TOKENS)
    require_finite_loss(found.overall.loss, "its checkpoint")
    return {
        kind: [
            {
                "loss": window.loss,
                "bits_per_byte": window.bits_per_byte,
                "pieces": _pieces(model, data.val, window.start, data.tokenizer, runtime),
            }
            for window in windows
        ]
        for kind, windows in (("worst", found.worst), ("best", found.best))
    }


@torch.inference_mode()
def _pieces(
    model: GPT, stream: TokenStream, start: int, tokenizer: Tokenizer, runtime: Runtime
) -> list[tuple[str, float, list[tuple[str, float]]]]:
    """The pieces of the window whose first target is at index `start` of the stream."""
    window = stream[start - 1 : start + model.config.context_length].astype(np.int64)
    targets = window[1:].tolist()
    logits = model(runtime.to_device(torch.from_numpy(window[None, :-1])))[0].float()  # (T, V)
    log_probabilities = logits.log_softmax(dim=-1).cpu()  # (T, V)
    top = log_probabilities.topk(min(ALTERNATIVES, log_probabilities.shape[-1]))
    pieces = []
    # A character may take several tokens: add up the bits until the decoder has all of its bytes.
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    text, bits, alternatives = "", 0.0, None
    for t, token in enumerate(targets):
        data = tokenizer.tokens[token] or "⏹".encode()  # an end of text has no bytes
        text += decoder.decode(data, final=t + 1 == len(targets))
        bits -= log_probabilities[t, token].item() / np.log(2)
        alternatives = alternatives or [
            (tokenizer.tokens[i].decode(errors="replace") or "⏹", float(np.exp(value)))
            for i, value in zip(top.indices[t].tolist(), top.values[t].tolist(), strict=True)
        ]
        if not decoder.getstate()[0]:
            pieces.append((text, round(bits, 3), alternatives))
            text, bits, alternatives = "", 0.0, None
    return pieces
