"""Train GPT-2-style language models on your own text, and generate from them.

`__all__` lists the public names; docs/python-api.md has an example of each.

>>> import gptmini, torch
>>> model = gptmini.GPT(gptmini.GPTConfig(vocab_size=65, n_layer=2, n_head=2, n_embd=32, context_length=16))
>>> model(torch.zeros(1, 8, dtype=torch.int64)).shape
torch.Size([1, 8, 65])
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same table as below, for type checkers and editors
    from gptmini.checkpoint.gpt2_directory import save as save
    from gptmini.config import Config as Config
    from gptmini.config import GPTConfig as GPTConfig
    from gptmini.config import load_config as load_config
    from gptmini.data.tokenizers import Tokenizer as Tokenizer
    from gptmini.evaluation.evaluate import evaluate as evaluate
    from gptmini.generation.attention import record_attention as record_attention
    from gptmini.generation.generate import generate as generate
    from gptmini.generation.load import load as load
    from gptmini.generation.streaming import generate_text as generate_text
    from gptmini.generation.streaming import stream as stream
    from gptmini.model import GPT as GPT
    from gptmini.training.run import train as train

__version__ = "0.1.0"
_MODULE_OF = {
    "GPT": "gptmini.model",
    "GPTConfig": "gptmini.config",
    "Config": "gptmini.config",
    "load_config": "gptmini.config",
    "Tokenizer": "gptmini.data.tokenizers",
    "save": "gptmini.checkpoint.gpt2_directory",
    "load": "gptmini.generation.load",
    "train": "gptmini.training.run",
    "evaluate": "gptmini.evaluation.evaluate",
    "generate": "gptmini.generation.generate",
    "record_attention": "gptmini.generation.attention",
    "generate_text": "gptmini.generation.streaming",
    "stream": "gptmini.generation.streaming",
}
__all__ = sorted(_MODULE_OF)

# How long a thread that waits for another keeps its core: read by OpenMP when torch is imported. By default
# it is so long that beside other programs the time is spent on waiting; here about as long as a sleep costs.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # libgomp, in torch for Linux: rounds of a loop, 10 us
    os.environ.setdefault("KMP_BLOCKTIME", "1")  # LLVM's and Intel's, in torch for macOS: milliseconds


def __getattr__(name: str) -> Any:
    """Import a public name at its first use, so that `import gptmini` alone does not import torch."""
    if name in _MODULE_OF:
        return getattr(import_module(_MODULE_OF[name]), name)
    raise AttributeError(f"module 'gptmini' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
