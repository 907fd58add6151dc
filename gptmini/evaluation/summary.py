"""What `gptmini evaluate` prints."""

from collections.abc import Iterator

from gptmini.data.token_files import TokenData
from gptmini.evaluation.baselines import first_bytes, measure_baselines
from gptmini.evaluation.memorization import COPIED_BYTES, copied_share, longest_shared_run, text_blocks
from gptmini.evaluation.window_losses import Window, WindowLosses
from gptmini.generation.generate import generate_text
from gptmini.model import GPT

SAMPLES, SAMPLE_TOKENS = 16, 256
COMPARED_BYTES = 8 << 20  # of the validation text, held against all of the training text
EXCERPT = 70  # characters


def evaluation(found: WindowLosses, length: int) -> Iterator[str]:
    """Lines: the loss over a text, and the windows of `length` tokens where it is highest and lowest."""
    yield f"loss           {found.whole.loss:.4f} nats per token"
    yield f"perplexity     {found.whole.perplexity:.2f}"
    yield f"bits per byte  {found.whole.bits_per_byte:.4f}"
    yield f"tokens         {found.whole.tokens:,}"
    for name, windows in (("worst", found.worst), ("best", found.best)):
        yield f"\n{name} windows of {length} tokens, in nats per token:"
        yield from map(_window, windows)


def references(data: TokenData) -> Iterator[str]:
    """Lines: what compressors and a 5-gram model reach on the same validation text."""
    found = measure_baselines(data)
    val_bytes = data.tokenizer.token_byte_lengths[data.val].sum()
    of_val = "the same text" if found.val_bytes == val_bytes else f"its first {found.val_bytes:,}"
    whole = found.train_bytes >= data.meta.train_bytes
    of_train = "the training text" if whole else f"the last {found.train_bytes:,} bytes of the training text"
    yield f"\nbits per byte of {of_val}, given {of_train}, by others:"
    yield f"  gzip         {found.gzip:.4f}"
    yield f"  xz           {found.xz:.4f}"
    yield f"  5-gram       {found.five_gram:.4f}"


def memorization(model: GPT, data: TokenData) -> Iterator[str]:
    """Lines: how much of samples, and of the validation text, stands in the training text word for word."""
    texts = generate_text(
        model, data.tokenizer, "", num_samples=SAMPLES, max_new_tokens=SAMPLE_TOKENS, seed=0
    )
    samples = "\0".join(texts).encode()
    val = first_bytes(data.val, data.tokenizer, COMPARED_BYTES)

    def shares_with_training(text: bytes) -> str:
        run = longest_shared_run(text, text_blocks(data.train, data.tokenizer))
        return f"{run.characters} characters: {_excerpt(run.text)}"

    yield f"\nlongest run that stands in the training text too, in {len(samples):,} bytes"
    yield f"  of samples           {shares_with_training(samples)}"
    yield f"  of validation text   {shares_with_training(val[: len(samples)])}"
    yield f"share that stands there in runs of {COPIED_BYTES} bytes or more"
    for name, text in (("samples", samples), (f"{len(val):,} bytes of validation text", val)):
        share = copied_share(text, text_blocks(data.train, data.tokenizer))
        yield f"  of {name}: {share:.2%}"


def _window(window: Window) -> str:
    return f"  {window.loss:.3f} from token {window.start:,}: {_excerpt(window.text)}"


def _excerpt(text: str) -> str:
    """The beginning of a text, on one line.

    >>> _excerpt("two\\nlines")
    "'two\\\\nlines'"
    """
    return repr(text if len(text) <= EXCERPT else text[: EXCERPT - 3] + "...")
