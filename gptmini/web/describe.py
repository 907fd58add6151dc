"""What the page says of a model: a sentence, sizes, a line of its own text, and the lines of model.py."""

import inspect
from contextlib import suppress
from pathlib import Path
from typing import Any

from gptmini import model
from gptmini.checkpoint.folders import is_run_folder, is_step_folder
from gptmini.checkpoint.hf_gpt2 import config_from_gpt2
from gptmini.checkpoint.safetensors_io import read_json
from gptmini.checkpoint.state import TrainingState, read_state
from gptmini.checkpoint.store import CheckpointStore
from gptmini.config import Config, DataConfig
from gptmini.data.documents import STANDARD_INPUT
from gptmini.data.prepare import corpus_names
from gptmini.data.tokenizers import load_tokenizer
from gptmini.errors import DamagedError, UserError
from gptmini.evaluation.first_line import first_line
from gptmini.schema import validate
from gptmini.training.estimate import count_parameters
from gptmini.training.log_files import read_metrics

# The line of model.py that computes each view, by the text that it begins with.
_LINES = {
    "embedding": "x = self.token_embedding(tokens) + self.position_embedding(positions)",
    "attention": "weights = F.dropout(scores.softmax(dim=-1)",
    "residual": "x = x + self.attn(self.ln_1(x), mask, cache)",
    "lens": "return self.lm_head(self.hidden_states(tokens, cache))",
    "loss": "return self.lm_head(self.hidden_states(tokens, cache))",
    "neighbors": "self.token_embedding = nn.Embedding(",
}


def describe(folder: Path, name: str) -> dict[str, Any]:
    """What the page says of the model in a run folder, a step's folder or a GPT-2 directory.

    Reads no weights. Raises UserError where there is no model, DamagedError where a file is broken.
    """
    if is_run_folder(folder):
        return CheckpointStore(folder, keep=1).read_best(lambda step: describe(step, name))
    if not (folder / "config.json").exists():
        raise UserError(f"{folder}: holds no checkpoint: there is neither checkpoints/ nor config.json in it")
    config = config_from_gpt2(read_json(folder / "config.json"))
    tokenizer = load_tokenizer(folder)
    if tokenizer is not None:  # without the rows that only pad the embedding
        config = config.model_copy(update={"vocab_size": min(config.vocab_size, tokenizer.vocab_size)})
    state = read_state(folder) if is_step_folder(folder) else None
    prompt = first_line(_data(state), tokenizer, config.context_length) if tokenizer and state else ""
    return {
        "name": name,
        "sentence": _sentence(folder, state),
        "first_line": prompt,
        "tokenizer": None if tokenizer is None else tokenizer.kind,
        **config.model_dump(include={"n_layer", "n_head", "n_embd", "vocab_size", "context_length"}),
        "parameters": count_parameters(config),
        "dtype": "float32",
        "file": "gptmini/model.py",
        "lines": find_lines(),
    }


def find_lines() -> dict[str, int]:
    """The number of the line of model.py that computes each view."""
    source = [line.strip() for line in inspect.getsource(model).splitlines()]
    return {
        view: next(number for number, line in enumerate(source, start=1) if line.startswith(text))
        for view, text in _LINES.items()
    }


def _sentence(folder: Path, state: TrainingState | None) -> str:
    if state is None:
        return "continues text and does not answer questions"
    corpora = corpus_names(_data(state))
    text = ", ".join("standard input" if name == STANDARD_INPUT else Path(name).name for name in corpora)
    seconds = None
    with suppress(DamagedError):  # the log of its run, which may be elsewhere by now
        for line in read_metrics(folder.parent.parent / "metrics.jsonl"):
            seconds = line["elapsed_seconds"] if line["step"] <= state.step else seconds
    steps = f"{state.step:,} step{'' if state.step == 1 else 's'}"
    time = steps if seconds is None else f"{_duration(seconds)} ({steps})"
    return f"continues text; it was trained on {text} for {time} and does not answer questions"


def _duration(seconds: float) -> str:
    """A time in one number and its unit.

    >>> _duration(0.4), _duration(89), _duration(312), _duration(9000)
    ('1 second', '89 seconds', '5 minutes', '2.5 hours')
    """
    size, unit = (3600, "hour") if seconds >= 5400 else (60, "minute") if seconds >= 90 else (1, "second")
    number = f"{max(1.0, round(seconds / size, size == 3600)):g}"
    return f"{number} {unit}{'' if number == '1' else 's'}"


def _data(state: TrainingState) -> DataConfig:
    return validate(Config, state.config, "state.json").data
