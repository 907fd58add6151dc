"""What a run will take: parameters, tokens, epochs, memory and FLOPs, from its config alone. Needs no torch.

Memory is counted: the size of every tensor that training holds follows from the config. The tests compare
the count with what autograd keeps; `python scripts/bench.py memory` compares it with whole runs.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from gptmini.config import Config, GPTConfig, TrainConfig
from gptmini.errors import OutOfMemoryError, UserError
from gptmini.memory import available_bytes, gibibytes

# Memory that no count covers, fitted to `python scripts/bench.py memory` on a CPU; builds of PyTorch differ.
PYTORCH_BYTES = 258 << 20  # the smallest run: Python, PyTorch, tokenizers, the kernels' workspace
RANKS_BYTES = 74 << 20  # besides, on each of several ranks: torch.distributed, and what DDP and FSDP import
FRAGMENTATION_BYTES = 50 << 20  # heap memory that glibc cannot reuse
LOWER_MODEL = "lower model.n_embd, model.n_layer, model.context_length or tokenizer.vocab_size"
LOWER_STEP = (
    "lower train.micro_batch_size (auto finds one that fits), model.context_length or the size of the model"
)
WIDTH = {"fp32": 4, "bf16": 2, "fp16": 2}  # bytes of a number in a matrix product


@dataclass(frozen=True)
class Memory:
    """Bytes that training takes on one rank, by what they hold."""

    weights: int  # the float32 parameters, and their copies in the precision of the matrix products
    optimizer: int  # AdamW's two averages of each parameter, Muon's one
    gradients: int  # one float32 number for each parameter
    activations: int  # what the forward pass of a micro batch keeps for the backward pass, without logits
    logits: int  # the logits, their log-softmax, and the gradients of both, where the backward pass begins
    gathered: int  # what a rank of a sharded model holds in full for a while: embeddings, a block or two
    update: int  # temporaries of Muon's update; AdamW needs none
    saved: int  # what the main rank gathers of a sharded model for a checkpoint, in main memory
    overhead: int  # PyTorch + fragmentation
    peak: int  # the total at the worst moment: in the backward pass, in the update, or while saving


@dataclass(frozen=True)
class Estimate:
    """A run in numbers, computed from its config and the size of its corpus."""

    parameters: int
    corpus_tokens: int | None  # None if the corpus has not been prepared yet
    tokens_per_step: int
    tokens: int
    flops_per_token: int  # floating-point operations of a forward and backward pass
    memory: Memory

    @property
    def epochs(self) -> float | None:
        """How often the run sees the corpus."""
        return self.tokens / self.corpus_tokens if self.corpus_tokens else None

    @property
    def warning(self) -> str | None:
        """Why this corpus is too small for this model, or None."""
        if self.corpus_tokens is None or self.epochs is None:
            return None
        if self.epochs <= 30 and (self.epochs <= 1 or self.parameters <= 5 * self.corpus_tokens):
            return None
        return (
            f"the corpus is small for this run: {self.parameters:,} parameters see {self.corpus_tokens:,} "
            f"tokens {self.epochs:.1f} times and may memorize them; more text, a smaller model, fewer steps "
            "or model.dropout help, and the best checkpoint is kept anyway"
        )

    def __str__(self) -> str:
        corpus = "" if self.corpus_tokens is None else f"{self.corpus_tokens:,} training tokens; "
        epochs = "" if self.epochs is None else f", {self.epochs:.1f} epochs"
        warning = f"\nwarning: {self.warning}" if self.warning else ""
        return (
            f"{self.parameters:,} parameters; {corpus}{self.tokens_per_step:,} tokens per step; "
            f"{self.tokens:,} in all{epochs}; about {mebibytes(self.memory.peak)} of memory{warning}"
        )


def estimate(
    config: Config,
    model: GPTConfig,
    corpus_tokens: int | None,
    precision: str,
    world_size: int = 1,
    micro_batch_size: int | None = None,
) -> Estimate:
    """What training `model` by `config` on `corpus_tokens` tokens takes, on one of `world_size` ranks.

    `precision` is fp32, bf16 or fp16: `runtime.precision` with `auto` resolved. A `micro_batch_size` replaces
    that of the config.
    """
    micro_batch_size = micro_batch_size or micro_batch_size_per_rank(config.train, world_size)
    tokens_per_step = config.train.batch_size * model.context_length
    return Estimate(
        parameters=count_parameters(model),
        corpus_tokens=corpus_tokens,
        tokens_per_step=tokens_per_step,
        tokens=config.train.max_steps * tokens_per_step,
        flops_per_token=flops_per_token(model),
        memory=_memory(config, model, precision, world_size, micro_batch_size),
    )


def micro_batch_size_per_rank(config: TrainConfig, world_size: int) -> int:
    """Sequences per forward pass on each of `world_size` ranks; UserError if they cannot share a batch.

    >>> micro_batch_size_per_rank(TrainConfig(batch_size=12), world_size=3)
    4
    """
    micro = None if config.micro_batch_size == "auto" else config.micro_batch_size
    if config.batch_size % (world_size * (micro or 1)):
        of = f"micro_batch_size = {micro} times " if micro else ""
        raise UserError(
            f"train.batch_size = {config.batch_size}: needs to be a multiple of {of}{world_size} ranks"
        )
    return micro or config.batch_size // world_size


def check_memory(config: Config, model: GPTConfig, precision: str, world_size: int, ranks_here: int) -> None:
    """OutOfMemoryError for a run on the CPU that clearly needs more than the machine has.

    Linux grants such memory, and kills the process that uses it.
    """
    auto = config.train.micro_batch_size == "auto"
    micro_batch_size = 1 if auto else micro_batch_size_per_rank(config.train, world_size)
    memory = _memory(config, model, precision, world_size, micro_batch_size)
    total = available_bytes(at_all=True)
    if total is not None and memory.peak * ranks_here > 1.25 * total:  # an estimate may be too high
        needed = f"about {gibibytes(memory.peak * ranks_here)} needed, {gibibytes(total)} in all"
        state = (memory.weights + memory.optimizer + memory.gradients) * ranks_here
        raise OutOfMemoryError(f"out of memory ({needed}): {LOWER_MODEL if state > total else LOWER_STEP}")


def fitting_micro_batch_size(
    config: Config, model: GPTConfig, precision: str, world_size: int, ranks_here: int = 1
) -> int:
    """The largest of `halves` whose estimated memory on a CPU is available now; 1 if none is."""
    available = available_bytes()
    for size in halves(config.train.batch_size // world_size):
        memory = _memory(config, model, precision, world_size, size)
        if available is None or (memory.peak - PYTORCH_BYTES) * ranks_here <= available:
            return size
    return 1


def halves(share: int) -> Iterator[int]:
    """The sequences of a rank's share, and divisors of it, each at most half of the one before.

    >>> list(halves(12))
    [12, 6, 3, 1]
    """
    size = share
    while size > 1:
        yield size
        size = next(divisor for divisor in range(size // 2, 0, -1) if share % divisor == 0)
    yield 1


def count_parameters(model: GPTConfig) -> int:
    """Number of trainable parameters; the tied output table counts once.

    >>> count_parameters(GPTConfig(n_layer=12, n_head=12, n_embd=768, context_length=1024))  # GPT-2 small
    124439808
    """
    C = model.n_embd
    embeddings = (model.vocab_size + model.context_length) * C
    block = 12 * C * C + 2 * C + (11 * C if model.bias else 0)  # matrices, LayerNorms, biases
    final = 2 * C if model.bias else C
    return embeddings + model.n_layer * block + final


def flops_per_token(model: GPTConfig) -> int:
    """Floating-point operations of training on one token: forward, and twice as many backward.

    6 for each weight in a matrix product (Kaplan et al., 2020: multiply and add, three times), the tied
    output table included and the looked-up positions left out, and 12 n_layer n_embd context_length for
    attention, with the masked half counted as in PaLM (Chowdhery et al., 2022, appendix B).
    """
    multiplying = count_parameters(model) - model.context_length * model.n_embd
    return 6 * multiplying + 12 * model.n_layer * model.n_embd * model.context_length


def _memory(
    config: Config, model: GPTConfig, precision: str, world_size: int, micro_batch_size: int
) -> Memory:
    on_cpu = config.runtime.device in ("auto", "cpu")
    sharded = config.runtime.parallel == "fsdp" and world_size > 1
    recompute = config.runtime.activation_checkpointing
    muon = config.optim.optimizer == "muon"
    width, B = WIDTH[precision], micro_batch_size
    T, C, V, L = model.context_length, model.n_embd, model.vocab_size, model.n_layer
    accumulates = B * world_size < config.train.batch_size
    parameters = count_parameters(model)
    block_matrices = 12 * C * C  # weights: c_attn 3, attention's c_proj 1, c_fc 4, the MLP's c_proj 4

    # State: what a rank holds all the time. FSDP splits it among the ranks, and makes no lasting copies.
    shards = world_size if sharded else 1
    copies = 0 if width == 4 or sharded else width * (L * block_matrices + V * C)
    averages = 4 * (2 * parameters - (L * block_matrices if muon else 0))
    gradients = 4 * parameters // shards

    # One micro batch, forward and backward.
    block = B * block_bytes_per_sequence(model, precision, on_cpu=on_cpu)
    activations = B * activation_bytes_per_sequence(model, precision, on_cpu=on_cpu, recompute=recompute)
    # The logits as the model returns them; in float32 their log-softmax, its gradient and theirs. While
    # gradients accumulate, the logits of the previous micro batch are still there.
    logits = B * T * V * ((2 if accumulates else 1) * width + 4 + 4 + 4)

    gathered = saved = update = 0
    if sharded:
        # In the backward pass FSDP2 holds in full the embeddings and their gradient; a block, its gradient
        # and the next block; and the block's gradient in float32, for the reduction.
        gathered = width * 2 * (V + T) * C + (3 * width + 4) * block_matrices
        # GPT-2's files store the block matrices transposed: a copy of each.
        saved = 4 * (parameters + L * block_matrices) + averages
    if muon:
        # Most for the two MLP matrices of all blocks. In float32 the updates, and their stack; and the larger
        # of: the normalised stack in float32; or x before and after one Newton-Schulz iteration and two Gram
        # matrices, in the precision of the products.
        stack, grams = L * 8 * C * C, L * 2 * C * C
        update = 4 * 2 * stack + max(4 * stack, (4 if on_cpu and width == 4 else 2) * (2 * stack + 2 * grams))

    overhead = PYTORCH_BYTES + (RANKS_BYTES if world_size > 1 else 0) + (FRAGMENTATION_BYTES if on_cpu else 0)
    if on_cpu and not sharded and not recompute:
        # Freed memory is kept from step to step (runtime.tune_malloc), so all adds up, and not every later
        # tensor fits into what was freed. DDP allocates its buckets twice.
        overhead += activations // 4 + (gradients // 2 if world_size > 1 else 0)
        working = activations + (logits + gradients if accumulates else max(logits, gradients)) + update
    else:
        backward_begins = activations + max(logits, gathered) + (gradients if accumulates else 0)
        backward_ends = gradients + gathered + (block if recompute else 0)
        working = max(backward_begins, backward_ends, gradients + update, saved if on_cpu else 0)
    weights, optimizer = 4 * parameters // shards + copies, averages // shards
    peak = weights + optimizer + working + overhead
    return Memory(weights, optimizer, gradients, activations, logits, gathered, update, saved, overhead, peak)


def activation_bytes_per_sequence(
    model: GPTConfig, precision: str, *, on_cpu: bool = True, recompute: bool = False
) -> int:
    """What a forward pass over context_length tokens keeps for the backward pass, in bytes, without logits.

    With `recompute` (activation checkpointing), each block keeps only its input, and one block at a time
    is kept in full.
    """
    T, C, L = model.context_length, model.n_embd, model.n_layer
    final = WIDTH[precision] * C + 4 * (C + 2)  # the last LayerNorm: its output, input, mean and deviation
    if model.dropout:
        final += (4 if on_cpu else 1) * C
    block = block_bytes_per_sequence(model, precision, on_cpu=on_cpu)
    return T * final + (L * 4 * T * C + block if recompute else L * block)


def block_bytes_per_sequence(model: GPTConfig, precision: str, *, on_cpu: bool = True) -> int:
    """What one block keeps for the backward pass over context_length tokens, in bytes."""
    T, C, H, width = model.context_length, model.n_embd, model.n_head, WIDTH[precision]
    mask = width if on_cpu else 1  # bytes of an element of a dropout mask
    token = (
        4 * 2 * C  # float32: the residual stream before attention and before the MLP,
        + 4 * 2 * 2  # and the mean and deviation of their LayerNorms
        + width * 2 * C  # the LayerNorms' outputs
        + width * 3 * C  # q, k and v
        + width * C  # attention's output
        + width * 2 * 4 * C  # the MLP's hidden layer before and after GELU
        + (2 * mask * C if model.dropout else 0)  # of the outputs of attention and the MLP
    )
    # The attention scores of one query, all heads together.
    if model.attention != "sdpa":
        token += H * T * (width + (width + mask if model.dropout else 0))
    elif model.dropout and on_cpu:  # the fused CPU kernel has no dropout: PyTorch takes float32 scores
        token += H * T * 3 * 4 + (4 - width) * 3 * C
    else:
        token += 4 * H  # the logsumexp of each head's scores
    return T * token


def mebibytes(size: int) -> str:
    """Bytes in MiB, for people."""
    return f"{size / 2**20:,.0f} MiB"
