"""What `gptmini train` prints last: how the result compares with compressors, and how to generate with it."""

import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from gptmini.checkpoint.store import CheckpointStore
from gptmini.config import Config, load_config
from gptmini.data.prepare import find_prepared
from gptmini.data.token_files import TokenData
from gptmini.data.tokenizers import Tokenizer, load_tokenizer
from gptmini.errors import UserError
from gptmini.evaluation.baselines import TEXT_BYTES, measure_baselines
from gptmini.evaluation.first_line import first_line
from gptmini.evaluation.verdict import describe_bits
from gptmini.memory import explain_shortage
from gptmini.training.log_files import read_metrics

BYTES_PER_SECOND = 700_000  # of text that the baselines are measured on; slow machines need twice as long
SECONDS, FRACTION = 2.0, 0.05  # that measuring may take: a moment, or of the time that the run took


def last_lines(run_folder: Path) -> Iterator[str]:
    """The lines after a run.

    What cannot be had is left out, such as a comparison where the text is gone: the run itself is done.
    """
    program, folder, prompt = _program(), shlex.quote(str(run_folder)), ""
    try:
        with explain_shortage(""):
            config = load_config(run_folder / "config.yaml")
            store = CheckpointStore(run_folder, keep=1)
            tokenizer = load_tokenizer(store.path(max(store.steps(), default=0)))
            if tokenizer is None:
                raise UserError("there is no checkpoint")
            prompt = first_line(config.data, tokenizer, config.model.context_length)
            compared = _comparison(run_folder, config, tokenizer)
            yield compared or f"compare it with gzip, xz and a 5-gram model: {program} evaluate {folder}"
    except (UserError, OSError, MemoryError):
        pass
    option = f" --prompt {shlex.quote(prompt)}" if prompt else ""
    yield f"generate from it: {program} generate {folder}{option}"


def _comparison(run_folder: Path, config: Config, tokenizer: Tokenizer) -> str | None:
    """How the best checkpoint compares; None where that takes too long for a run so short."""
    lines = list(read_metrics(run_folder / "metrics.jsonl"))
    bits = [line["bits_per_byte"] for line in lines if line["split"] == "val" and line["bits_per_byte"]]
    data = find_prepared(config.data, tokenizer)
    if data is None or not bits:
        raise UserError("there is nothing to compare")
    if _seconds(data) > max(SECONDS, FRACTION * lines[-1]["elapsed_seconds"]):
        return None
    return describe_bits(min(bits), measure_baselines(data).bits_per_byte)


def _seconds(data: TokenData) -> float:
    """About how long the baselines of this text take."""
    used = sum(min(TEXT_BYTES, size) for size in (data.meta.train_bytes, data.meta.val_bytes))
    return used / BYTES_PER_SECOND


def _program() -> str:
    """How gptmini was called, for a command to paste: gptmini, .venv/bin/gptmini or python -m gptmini."""
    called = sys.argv[0]
    if Path(called).stem != "gptmini":
        return f"{shlex.quote(sys.executable)} -m gptmini"
    return "gptmini" if called == shutil.which("gptmini") else shlex.quote(called)
