"""evaluate(model, tokenizer, text): how well a model predicts a text."""

import math
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from gptmini.checkpoint.gpt2_directory import unwrap
from gptmini.data.batching import validation_batches
from gptmini.data.corpus import Corpus
from gptmini.data.documents import read_documents
from gptmini.data.prepare import encode_corpus
from gptmini.data.token_files import TokenStream
from gptmini.data.tokenizers import Tokenizer
from gptmini.errors import DamagedError, UserError
from gptmini.generation.prompts import whole_number
from gptmini.memory import explain_shortage
from gptmini.model import GPT
from gptmini.paths import path_argument
from gptmini.training.loss import Evaluation, evaluate_batches
from gptmini.training.runtime import Runtime


@explain_shortage("give a shorter text, or load a smaller precision")
def evaluate(
    model: nn.Module,
    tokenizer: Tokenizer | None,
    text: str | Path,
    *,
    batch_size: int = 32,
    text_field: str = "text",
) -> Evaluation:
    """How well `model` predicts `text`: .loss (nats per token), .bits_per_byte, .perplexity, .tokens.

    `model` and `tokenizer` are as `gptmini.load` returns them; the model stays on its device and in its
    train or eval mode, and may be wrapped in DDP. A str is the text itself, a Path a file of it as a corpus
    may have: plain text, .gz, JSON lines with the text in `text_field`, ... The text is cut into windows of
    context_length tokens, predicted `batch_size` at a time.

    Raises UserError for a text of less than two tokens, and for one that the model cannot read; DamagedError
    where the weights give no finite loss.
    """
    gpt = unwrap(model)
    if tokenizer is None:
        raise UserError("evaluate needs the model's tokenizer, but tokenizer = None was given")
    if whole_number("batch_size", batch_size) < 1:
        raise UserError(f"batch_size = {batch_size}: must be 1 or more")
    tokens = _encode(text, tokenizer, text_field)
    if len(tokens) < 2:
        raise UserError(f"the text is {len(tokens)} tokens long, and evaluate needs two at least")
    require_known_ids(gpt, tokenizer, tokens)
    # The weights' own number format is used as it is, so nothing is cast: no autocast.
    device = next(gpt.parameters()).device
    runtime = Runtime(device, "fp32", threads=torch.get_num_threads(), compile=False)
    batches = validation_batches(tokens, gpt.config.context_length, batch_size)
    found = evaluate_batches(gpt, batches, tokenizer.count_bytes, runtime)
    require_finite_loss(found.loss, "model")
    return found


def require_known_ids(model: GPT, tokenizer: Tokenizer, tokens: TokenStream) -> None:
    """Raise UserError where the model has no embedding for an id; its vocabulary may be the larger one."""
    vocab_size = model.config.vocab_size
    if tokenizer.vocab_size > vocab_size and (largest := int(tokens[:].max())) >= vocab_size:
        raise UserError(
            f"the tokenizer gave token id {largest}, but the model's vocab_size is {vocab_size}: use the "
            "tokenizer that the model was trained with"
        )


def require_finite_loss(loss: float, name: str) -> None:
    """Raise DamagedError, naming the model, where the loss is no number."""
    if not math.isfinite(loss):
        raise DamagedError(
            f"{name}: the loss is {loss}, as its weights are not finite or too large to compute with"
        )


def _encode(text: str | Path, tokenizer: Tokenizer, text_field: str) -> np.ndarray:
    """The ids of a text, or of a file, read as the files of a corpus are."""
    if isinstance(text, str):
        return np.array(tokenizer.encode(text), dtype=np.int64)
    if not isinstance(text, Path):
        raise UserError(f"evaluate takes a text (str) or a file (pathlib.Path), not {type(text).__name__}")
    read = partial(read_documents, path_argument(text), text_field)
    return encode_corpus(Corpus(str(text), (read,)), tokenizer)
