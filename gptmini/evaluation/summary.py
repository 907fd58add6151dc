"""What `gptmini evaluate` prints: loss, best and worst windows, baselines, memorization."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from gptmini.checkpoint.folders import is_step_folder
from gptmini.checkpoint.store import CheckpointStore, load_model
from gptmini.config import DataConfig, RuntimeConfig, load_config
from gptmini.data.corpus import open_corpus
from gptmini.data.prepare import encode_corpus, find_prepared, prepare
from gptmini.data.token_files import TokenData, TokenStream
from gptmini.errors import UserError
from gptmini.evaluation.baselines import first_bytes, measure_baselines
from gptmini.evaluation.evaluate import require_finite_loss, require_known_ids
from gptmini.evaluation.memorization import COPIED_BYTES, copied_fraction, longest_shared_run, text_blocks
from gptmini.evaluation.window_losses import WindowLosses, evaluate_windows
from gptmini.generation.precision import set_precision
from gptmini.generation.streaming import generate_text
from gptmini.model import GPT
from gptmini.training.runtime import start_runtime

SAMPLES, SAMPLE_TOKENS = 16, 256
COMPARED_BYTES = 8 << 20  # of the validation text, searched for in all of the training text


def evaluate_checkpoint(
    checkpoint: str,
    corpus: Sequence[str] | None = None,
    *,
    text_field: str | None = None,
    memorization: bool = False,
    batch_size: int = 32,
    device: str = "auto",
    precision: Literal["fp32", "bf16", "int8"] = "fp32",
) -> Iterator[str]:
    """Lines: how well a checkpoint predicts the validation split of its own run, or the text in `corpus`.

    `text_field` is the field of JSON, or column of parquet, that holds the text in `corpus`; None: that of
    the run. With a `precision` below fp32 also what that costs in loss. Raises UserError where there is no
    text to evaluate on.
    """
    if text_field is not None and corpus is None:
        raise UserError("--text-field is for the text that --corpus names: give it too, or leave both out")
    runtime = start_runtime(RuntimeConfig(device=device, precision="fp32"))
    model, tokenizer = load_model(checkpoint, str(runtime.device))
    if tokenizer is None:
        raise UserError(f"{checkpoint}: holds no tokenizer, so it cannot read a text")
    length = model.config.context_length
    settings, trained_on = _find_run_data(checkpoint)

    # The run's own text is what baselines are trained on; for another text it is used if it is at hand.
    data: TokenData | None = None
    if corpus is None or memorization:
        if settings is None:
            advice = "--memorization needs its training text" if memorization else "name a text by --corpus"
            raise UserError(f"{checkpoint}: has no config.yaml of a run beside it: {advice}")
        try:
            data = prepare(settings, tokenizer, length, trained_on=trained_on)
        except UserError as error:  # no such text any more, or another one
            advice = "" if memorization else " (evaluate --corpus reads another text)"
            raise UserError(f"{error}{advice}") from None
    elif settings is not None:
        data = find_prepared(settings, tokenizer, trained_on)
    if corpus is not None:
        settings = settings or DataConfig()
        opened = open_corpus(tuple(corpus), text_field or settings.text_field, settings.errors, "--corpus")
        tokens: TokenStream = encode_corpus(opened, tokenizer)
        if len(tokens) < 2:
            raise UserError(f"--corpus {' '.join(corpus)}: is less than two tokens long")
        data = data and dataclasses.replace(data, val=tokens)
    else:
        assert data is not None
        tokens = data.val
    require_known_ids(model, tokenizer, tokens)

    found = evaluate_windows(model, tokens, tokenizer, length, runtime, batch_size=batch_size)
    exact = found.overall.loss
    require_finite_loss(exact, checkpoint)
    if precision != "fp32":
        model = set_precision(model, precision)
        found = evaluate_windows(model, tokens, tokenizer, length, runtime, batch_size=batch_size)
    yield from _window_lines(found, length)
    if precision != "fp32":
        cost = found.overall.loss - exact
        yield f"\n{precision} costs     {cost:+.5f} nats per token; fp32 has {exact:.4f}"
    if data is not None:
        yield from _baseline_lines(data)
    if data is not None and memorization:
        yield from _memorization_lines(model, data)


def _find_run_data(checkpoint: str) -> tuple[DataConfig | None, str | None]:
    """What names the text of a checkpoint's run, and the digest of its tokens, as far as there is a run."""
    path, parent = Path(checkpoint), Path(checkpoint).resolve().parent
    of_a_run = parent.name == "checkpoints" and is_step_folder(path)  # a config.yaml in it is a stray
    for folder in [parent.parent] if of_a_run else [path, parent.parent]:
        if (folder / "config.yaml").is_file():
            state = CheckpointStore(folder, keep=1).newest_state()
            return load_config(folder / "config.yaml").data, state.data_digest if state else None
    return None, None


def _window_lines(found: WindowLosses, length: int) -> Iterator[str]:
    yield f"loss           {found.overall.loss:.4f} nats per token"
    yield f"perplexity     {found.overall.perplexity:.2f}"
    yield f"bits per byte  {found.overall.bits_per_byte:.4f}"
    yield f"tokens         {found.overall.tokens:,}"
    for name, windows in (("worst", found.worst), ("best", found.best)):
        yield f"\n{name} windows of {length} tokens, in nats per token:"
        for window in windows:
            yield f"  {window.loss:.3f} from token {window.start:,}: {_excerpt(window.text)}"


def _baseline_lines(data: TokenData) -> Iterator[str]:
    found = measure_baselines(data)
    val_bytes = data.tokenizer.token_byte_lengths[data.val[:]].sum()
    of_val = "the same text" if found.val_bytes == val_bytes else f"its first {found.val_bytes:,} bytes"
    all_of_it = found.train_bytes >= data.meta.train_bytes
    of_train = "" if all_of_it else f"the last {found.train_bytes:,} bytes of "
    yield f"\nbaselines, in bits per byte of {of_val}, given {of_train}the training text:"
    for name, bits in found.bits_per_byte.items():
        yield f"  {name:12} {bits:.4f}"


def _memorization_lines(model: GPT, data: TokenData) -> Iterator[str]:
    """What samples copy from the training text, and for comparison what the validation text does."""
    texts = generate_text(
        model, data.tokenizer, "", num_samples=SAMPLES, max_new_tokens=SAMPLE_TOKENS, seed=0
    )
    samples = "\0".join(texts).encode()
    val = first_bytes(data.val, data.tokenizer, COMPARED_BYTES)

    yield f"\nlongest run copied from the training text, in {len(samples):,} bytes"
    # A longer text has a longer run in common by chance, so both are of the same size.
    for name, text in (("samples", samples), ("validation text", val[: len(samples)])):
        run = longest_shared_run(text, text_blocks(data.train, data.tokenizer))
        yield f"  of {name:17} {len(run)} characters: {_excerpt(run)}"
    yield f"fraction that lies in copied runs of {COPIED_BYTES} bytes or more"
    for name, text in (("samples", samples), (f"{len(val):,} bytes of validation text", val)):
        fraction = copied_fraction(text, text_blocks(data.train, data.tokenizer))
        yield f"  of {name}: {fraction:.2%}"


def _excerpt(text: str) -> str:
    """The beginning of a text, on one line."""
    return repr(text if len(text) <= 70 else text[:67] + "...")
