"""What the report shows of each run: metrics, samples, and what its model does with its own text."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from gptmini.checkpoint.store import load_model
from gptmini.config import DataConfig
from gptmini.data.documents import STANDARD_INPUT
from gptmini.data.prepare import corpus_names, prepare
from gptmini.data.token_files import TokenData
from gptmini.errors import DamagedError, UserError
from gptmini.evaluation.baselines import Baselines, first_bytes, measure_baselines
from gptmini.evaluation.memorization import copied_fraction, text_blocks
from gptmini.report.runs import Run
from gptmini.report.surprisal import extreme_windows
from gptmini.training.runtime import Runtime

COMPARED_BYTES = 1 << 17  # of the validation text at most, searched for in the training text
COMPARED_BLOCKS = 64  # of the training text at most: seconds instead of minutes
_METRICS = (
    "step", "split", "loss", "bits_per_byte", "lr", "grad_norm", "tokens", "tokens_per_second",
    "elapsed_seconds",
)  # fmt: skip


def read_content(runs: Sequence[Run], runtime: Runtime) -> tuple[list[dict[str, Any]], list[str]]:
    """What report.js shows of each run, and a line for each thing that could not be had."""
    baselines: dict[str, Baselines] = {}
    notes: list[str] = []
    shown = [_run_content(run, runtime, baselines, notes) for run in runs]
    tell_texts_apart(shown)
    return shown, notes


def tell_texts_apart(shown: list[dict[str, Any]]) -> None:
    """Give texts that differ but are called the same, such as input.txt in two folders, names that differ."""
    digests: dict[str, str | None] = {}
    for run in shown:
        if digests.setdefault(run["text"], run["text_digest"]) != run["text_digest"]:
            run["text"] += f" of {run['name']}"


def _run_content(run: Run, runtime: Runtime, known: dict[str, Baselines], notes: list[str]) -> dict[str, Any]:
    """What report.js shows of a run; whatever is not available is left out, with a line in `notes`.

    `known` has the baselines of the texts so far, by digest: measuring them takes seconds.
    """
    content: dict[str, Any] = {
        "name": run.name,
        "metrics": [{key: line.get(key) for key in _METRICS} for line in run.metrics],
        "samples": run.samples,
        "text": _text_name(run.config.data),
        "text_digest": None,
        "baselines": {},
        "copied": None,
        "worst": [],
        "best": [],
        "parameters": None,
    }
    try:
        model, tokenizer = load_model(run.folder, str(runtime.device))
        content["parameters"] = sum(parameter.numel() for parameter in model.parameters())
        if tokenizer is None:
            raise UserError("its checkpoint holds no tokenizer")
        if STANDARD_INPUT in corpus_names(run.config.data):
            raise UserError("its text came from standard input")
        length = model.config.context_length
        data = prepare(run.config.data, tokenizer, length, quiet=True, trained_on=run.data_digest)
        content |= extreme_windows(model, data, runtime)
        digest = content["text_digest"] = f"{data.meta.corpus_digest} {data.meta.train_bytes}"
        if digest not in known:
            known[digest] = measure_baselines(data)
        content["baselines"] = known[digest].bits_per_byte
        if run.samples:
            content["copied"] = _copied(run.samples[-1]["text"], data)
    except (UserError, DamagedError) as error:
        notes.append(f"{run.name}: no token view and no comparison with compressors: {error}")
    if not run.samples:
        notes.append(f"{run.name}: no samples; train.sample_interval makes some")
    return content


def _copied(sample: str, data: TokenData) -> tuple[float, float]:
    """The fractions of a sample, and of validation text, that stand in the training text word for word."""
    val = first_bytes(data.val, data.tokenizer, COMPARED_BYTES)
    texts = (sample.encode(errors="replace"), val)
    blocks = [islice(text_blocks(data.train, data.tokenizer), COMPARED_BLOCKS) for _ in texts]
    of_sample, of_val = map(copied_fraction, texts, blocks)
    return of_sample, of_val


def _text_name(data: DataConfig) -> str:
    """The text by the last part of its path or paths."""
    return ", ".join(Path(name).name for name in corpus_names(data))
