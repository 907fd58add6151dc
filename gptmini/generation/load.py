"""A checkpoint, made ready to generate from."""

from pathlib import Path
from typing import get_args

from gptmini.checkpoint.hub import find_weights
from gptmini.checkpoint.store import load_model
from gptmini.data.tokenizers import Tokenizer
from gptmini.distributed.device import find_device
from gptmini.errors import UserError
from gptmini.generation.precision import Precision, set_precision
from gptmini.model import GPT
from gptmini.paths import path_argument


def load(
    path: str | Path, device: str = "auto", precision: Precision = "fp32"
) -> tuple[GPT, Tokenizer | None]:
    """The model, in eval mode, and the tokenizer of a checkpoint, fast to generate with.

    `path` is a run folder (its best checkpoint, else its latest), one step's folder, any Hugging Face GPT-2
    directory, or the name of a GPT-2 on the Hub, such as "openai-community/gpt2". The tokenizer is None where
    there is none. `device` is auto (a GPU, else the CPU), cpu, cuda, cuda:1 or mps. A `precision` of bf16
    halves the bytes that generation reads and int8, on a CPU only, quarters them: such a model cannot be
    trained. With numba installed (`gptmini[fast]`) generation on a CPU is faster.

    Raises UserError if there is no checkpoint, or one that this version cannot read; DamagedError, naming
    the file, if it is not what was written.
    """
    if precision not in get_args(Precision):
        raise UserError(f"precision = {precision!r} must be one of {', '.join(get_args(Precision))}")
    given = path_argument(path, "load takes a path or a name on the Hub")
    folder = find_weights(path if isinstance(path, str) else str(given))  # "./gpt2" is no name on the Hub
    model, tokenizer = load_model(folder, str(find_device(device)))
    return set_precision(model, precision), tokenizer
