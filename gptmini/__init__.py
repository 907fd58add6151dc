"""gptmini: train GPT-2-style language models on your own text, and generate from them.

>>> import gptmini, torch
>>> model = gptmini.GPT(gptmini.GPTConfig(vocab_size=65, n_layer=2, n_head=2, n_embd=32, context_length=16))
>>> model(torch.zeros(1, 8, dtype=torch.int64)).shape
torch.Size([1, 8, 65])
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptmini.checkpoint.store import load as load
    from gptmini.config import Config as Config
    from gptmini.config import GPTConfig as GPTConfig
    from gptmini.generate import generate as generate
    from gptmini.model import GPT as GPT
    from gptmini.training.trainer import train as train

__version__ = "0.1.0"
__all__ = ["GPT", "Config", "GPTConfig", "generate", "load", "train"]

_HOME = {
    "GPT": "gptmini.model",
    "GPTConfig": "gptmini.config",
    "Config": "gptmini.config",
    "load": "gptmini.checkpoint.store",
    "train": "gptmini.training.trainer",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use, so that `import gptmini` alone does not import torch."""
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'gptmini' has no attribute {name!r}")


class _Package(ModuleType):
    """Keeps `gptmini.generate` the function, though the module that holds it has the same name.

    Importing a submodule binds it to its package under its name; here the function keeps that place.
    """

    @property
    def generate(self) -> Any:
        return import_module("gptmini.generate").generate

    @generate.setter
    def generate(self, module: ModuleType) -> None:
        pass


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return __all__
