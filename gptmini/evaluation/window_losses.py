"""Which parts of a text a model predicts best and worst."""

from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from gptmini.data.batching import validation_batches
from gptmini.data.token_files import TokenStream
from gptmini.data.tokenizers import Tokenizer
from gptmini.generation.generate import eval_mode
from gptmini.training.loss import Evaluation, bits_per_byte
from gptmini.training.runtime import Runtime


class Window(NamedTuple):
    """The targets of one forward pass: up to context_length tokens of the text."""

    start: int  # index of its first token in the text
    loss: float  # nats per token
    bits_per_byte: float
    text: str


class WindowLosses(NamedTuple):
    """The evaluation of a text, and its windows with the highest and the lowest loss."""

    overall: Evaluation
    worst: list[Window]  # highest loss first
    best: list[Window]  # lowest loss first


@torch.inference_mode()
def evaluate_windows(
    model: nn.Module,
    tokens: TokenStream,
    tokenizer: Tokenizer,
    context_length: int,
    runtime: Runtime,
    *,
    batch_size: int = 32,
    count: int = 3,
    max_tokens: int | None = None,
) -> WindowLosses:
    """The model's loss over tokens (N,), N >= 2, and the `count` windows where it is highest and lowest.

    Windows and overall loss are those of `training.loss.evaluate_batches`. A last, shorter window counts
    overall but is not ranked, unless it is the only one.
    """
    byte_lengths = torch.from_numpy(tokenizer.token_byte_lengths)  # (V,)
    lengths, nats, text_bytes = [], [], []  # of each window: tokens, total loss, bytes of text
    with eval_mode(model.modules()):
        for inputs, targets in validation_batches(tokens, context_length, batch_size, max_tokens):
            with runtime.autocast():
                logits = model(runtime.to_device(inputs))  # (B, T, V)
            # reduction="none" keeps a loss for each token, to be summed by window instead of by batch.
            losses = F.cross_entropy(
                logits.float().flatten(0, 1), runtime.to_device(targets).flatten(), reduction="none"
            )  # (B * T,)
            lengths += [targets.shape[1]] * len(targets)
            nats += losses.view(targets.shape).sum(dim=1, dtype=torch.float32).tolist()
            text_bytes += byte_lengths[targets].sum(dim=1).tolist()

    tokens_seen = sum(lengths)
    overall = Evaluation(sum(nats) / tokens_seen, bits_per_byte(sum(nats), sum(text_bytes)), tokens_seen)
    window_losses = np.array(nats) / lengths
    if len(lengths) > 1 and lengths[-1] < context_length:
        window_losses = window_losses[:-1]
    order = np.argsort(window_losses, kind="stable").tolist()  # lowest loss first

    def window(i: int) -> Window:
        start = i * context_length + 1  # the token before it is input only
        text = tokenizer.decode(tokens[start : start + lengths[i]].tolist())
        return Window(start, float(window_losses[i]), bits_per_byte(nats[i], text_bytes[i]), text)

    worst, best = order[::-1][:count], order[:count]
    return WindowLosses(overall, worst=[window(i) for i in worst], best=[window(i) for i in best])
