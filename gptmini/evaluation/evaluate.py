"""evaluate(model, tokenizer, text): how well a model predicts a text."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from gptmini.checkpoint.gpt2_directory import unwrap
from gptmini.data.batching import validation_batches
from gptmini.data.tokenizers import Tokenizer
from gptmini.errors import UserError
from gptmini.training.loss import Evaluation, evaluate_batches
from gptmini.training.runtime import Runtime


def evaluate(
    model: nn.Module, tokenizer: Tokenizer | None, text: str | Path, *, batch_size: int = 32
) -> Evaluation:
    """How well `model` predicts `text`: .loss (nats per token), .bits_per_byte, .perplexity, .tokens.

    `model` and `tokenizer` are as `gptmini.load` returns them; the model stays on its device and in its
    train or eval mode, and may be wrapped in DDP. A str is the text itself, a Path a UTF-8 file of it. The
    text is cut into windows of context_length tokens, predicted `batch_size` at a time.

    Raises UserError for a text of less than two tokens, and for one that the model cannot read.
    """
    gpt = unwrap(model)
    if tokenizer is None:
        raise UserError("evaluate needs the model's tokenizer, but tokenizer = None was given")
    tokens = np.array(tokenizer.encode(_read(text)), dtype=np.int64)
    if len(tokens) < 2:
        raise UserError(f"the text is {len(tokens)} tokens long, and evaluate needs two at least")
    if tokens.max() >= gpt.config.vocab_size:
        raise UserError(
            f"the tokenizer gave token id {tokens.max()}, but the model's vocab_size is "
            f"{gpt.config.vocab_size}: use the tokenizer that the model was trained with"
        )
    # The weights' own number format is used as it is, so nothing is cast: no autocast.
    device = next(gpt.parameters()).device
    runtime = Runtime(device, "fp32", threads=torch.get_num_threads(), compile=False)
    batches = validation_batches(tokens, gpt.config.context_length, batch_size)
    return evaluate_batches(gpt, batches, tokenizer.count_bytes, runtime)


def _read(text: str | Path) -> str:
    """The text itself, or that of a file."""
    if isinstance(text, str):
        return text
    if not isinstance(text, Path):
        raise UserError(f"evaluate takes a text (str) or a file (pathlib.Path), not {type(text).__name__}")
    try:
        return text.expanduser().read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{text}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise UserError(f"{text}: cannot be read: {error.strerror}") from None
