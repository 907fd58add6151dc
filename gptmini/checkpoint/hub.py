"""GPT-2 weights by name: a folder on this machine, or a model of the Hugging Face Hub."""

import errno
import re
from pathlib import Path

from gptmini.checkpoint.folders import runs_there_are
from gptmini.errors import UserError

_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")  # as in openai-community/gpt2-medium
# Of files: such a name is not looked for on the Hub.
_FILE_SUFFIXES = (".pt", ".pth", ".ckpt", ".pkl", ".bin", ".safetensors", ".gguf")
_FILES = [  # never pickled weights
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
]


def find_weights(name: str | Path) -> Path:
    """The folder `name`, or else the local copy of the model that the Hub has under that name.

    What was downloaded once is found again without a network. Raises UserError, saying what to download,
    where there is neither; OSError where the disk does not take it.
    """
    folder = Path(name).expanduser()
    if folder.suffix in _FILE_SUFFIXES and not folder.exists():
        raise UserError(
            f"{name}: no such file; a model is a folder, and pickle files are never loaded: gptmini "
            "import-nanogpt makes a folder of nanoGPT's"
        )
    if folder.exists() or not isinstance(name, str) or not _HUB_NAME.fullmatch(name):
        return folder
    import huggingface_hub  # slow to import

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=_FILES))
    except Exception as error:  # it, its HTTP client, a proxy, ... raise classes of their own
        if isinstance(error, OSError) and (error.filename or error.errno == errno.ENOSPC):
            raise  # this machine's disk
        reason = type(error.__cause__ or error).__name__
        raise UserError(
            f"{name}: no such folder, and the Hugging Face Hub gives no model of that name ({reason}); "
            f"offline, run `hf download {name}` where there is a network and give the folder that it prints"
            f"{runs_there_are(folder)}"
        ) from None
