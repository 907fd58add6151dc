"""Which parts of a text a model predicts worst and best."""

from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from gptmini.data.batching import validation_batches
from gptmini.data.tokenizers import Tokenizer
from gptmini.training.loss import Evaluation, bits_per_byte
from gptmini.training.runtime import Runtime


class Window(NamedTuple):
    """A stretch of text that the model saw at once."""

    start: int  # of its first token in the stream
    loss: float  # nats per token
    bits_per_byte: float
    text: str


class WindowLosses(NamedTuple):
    """A whole text's evaluation, and its extremes."""

    whole: Evaluation
    worst: list[Window]  # the worst first
    best: list[Window]  # the best first


@torch.inference_mode()
def evaluate_windows(
    model: nn.Module,
    tokens: np.ndarray,
    tokenizer: Tokenizer,
    context_length: int,
    runtime: Runtime,
    *,
    batch_size: int = 32,
    count: int = 3,
    max_tokens: int | None = None,
) -> WindowLosses:
    """The model's loss over a token stream (N,), and the `count` windows where it is highest and lowest.

    The windows are those of training.loss.evaluate, and so is the loss of the whole. The last, shorter window
    counts in the whole but is no extreme, unless it is the only one. Needs two tokens or more.
    """
    lengths = torch.from_numpy(tokenizer.token_byte_lengths)
    counts, sums, sizes = [], [], []  # of each window: tokens, nats, bytes of text
    training = model.training
    model.eval()
    for inputs, targets in validation_batches(tokens, context_length, batch_size, max_tokens):
        with runtime.autocast():
            logits = model(runtime.to_device(inputs))
        nats = F.cross_entropy(
            logits.float().flatten(0, 1), runtime.to_device(targets).flatten(), reduction="none"
        )
        counts += [targets.shape[1]] * len(targets)
        sums += nats.view(targets.shape).sum(dim=1, dtype=torch.float32).tolist()
        sizes += lengths[targets].sum(dim=1).tolist()
    model.train(training)

    whole = Evaluation(sum(sums) / sum(counts), bits_per_byte(sum(sums), sum(sizes)), sum(counts))
    losses = np.array(sums) / counts
    if len(counts) > 1 and counts[-1] < context_length:
        losses = losses[:-1]
    order = np.argsort(losses, kind="stable")

    def window(i: int) -> Window:
        start = i * context_length
        text = tokenizer.decode(tokens[start + 1 : start + 1 + counts[i]].tolist())
        return Window(start + 1, float(losses[i]), bits_per_byte(sums[i], sizes[i]), text)

    return WindowLosses(
        whole,
        worst=[window(int(i)) for i in order[::-1][:count]],
        best=[window(int(i)) for i in order[:count]],
    )
