"""Next-token loss, and its average over a split."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptmini.generation.generate import eval_mode
from gptmini.training.runtime import Runtime


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of logits (B, T, V) against target ids (B, T): a float32 scalar, nats per token.

    A model that knows nothing gives every token the same probability, so its loss is ln V:

    >>> next_token_loss(torch.zeros(2, 3, 65), torch.zeros(2, 3, dtype=torch.int64))
    tensor(4.1744)
    """
    # Every position is one prediction: (B, T, V) -> (B * T, V). float(): softmax needs more than bfloat16.
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def bits_per_byte(nats: float, text_bytes: float) -> float:
    """The loss of a whole text, in bits per byte: the size an ideal compressor with this model reaches.

    >>> bits_per_byte(math.log(2) * 300, text_bytes=100)
    3.0
    """
    return nats / math.log(2) / max(1, text_bytes)


@dataclass(frozen=True)
class Evaluation:
    """How well a model predicts a text."""

    loss: float
    """Nats per token: comparable between models that share a tokenizer."""
    bits_per_byte: float
    """Bits per byte of text: comparable between any two models."""
    tokens: int
    """Number of tokens predicted."""

    @property
    def perplexity(self) -> float:
        """exp(loss): as uncertain as a uniform choice among this many tokens; infinite where a float ends."""
        try:
            return math.exp(self.loss)
        except OverflowError:
            return math.inf


@torch.inference_mode()
def evaluate_batches(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    count_bytes: Callable[[Tensor], int],
    runtime: Runtime,
) -> Evaluation:
    """The model's mean loss over all `batches` of (inputs, targets), each int64 (B, T), without dropout.

    `count_bytes` returns the bytes of text that the targets stand for. The ranks of `runtime` share the
    batches, and all return the same result. Uses no randomness, so evaluating changes nothing in training.
    """
    nats, tokens, text_bytes = 0.0, 0.0, 0.0
    with eval_mode(model.modules()):
        for inputs, targets in runtime.distributed.shard_batches(batches):
            with runtime.autocast():
                logits = model(runtime.to_device(inputs))  # (B, T, V)
            if len(targets):  # FSDP: a rank without a batch left computes one, as the others need its shard
                # Weighted by token, so that a shorter last batch does not count more.
                nats += next_token_loss(logits, runtime.to_device(targets)).item() * targets.numel()
                tokens += targets.numel()
                text_bytes += count_bytes(targets)
    nats, tokens, text_bytes = runtime.distributed.all_reduce_sum(nats, tokens, text_bytes)
    return Evaluation(nats / tokens, bits_per_byte(nats, text_bytes), int(tokens))
