"""What is about to happen, in figures: parameters, tokens, epochs, memory, operations, hours. Needs no torch.

Memory is counted: every tensor that training holds follows from the config. The tests compare the count with
what autograd keeps; `python scripts/bench.py memory` compares it with whole runs.
"""

from dataclasses import dataclass

from gptmini.config import Config, GPTConfig, TrainConfig
from gptmini.errors import UserError

PYTORCH_BYTES = 258 << 20
"""Resident memory of the smallest run: Python, PyTorch, tokenizers, and the scratch space of the kernels. As
`python scripts/bench.py memory` measured it; it differs between builds of PyTorch and from CPU to CUDA."""

RANKS_BYTES = 74 << 20
"""What one of several ranks holds besides: torch.distributed, and what DDP and FSDP import."""

FRAGMENTATION_BYTES = 50 << 20
"""What glibc on a CPU cannot use again, fitted to `python scripts/bench.py memory`: this, and where memory is
kept from step to step a quarter of the activations, because what comes later does not always fit."""


@dataclass(frozen=True)
class Memory:
    """Bytes that training takes on one rank, by what they hold."""

    weights: int
    """The float32 parameters, and their copies in the number format of the products."""
    optimizer: int
    """AdamW's two averages of each value, Muon's one."""
    gradients: int
    """One float32 number for each parameter."""
    activations: int
    """What the forward pass of a micro batch keeps for the backward pass, logits left out."""
    logits: int
    """The logits, their log-softmax, and their gradients, where the backward pass begins."""
    gathered: int
    """What a rank of a sharded model holds whole for a while: the embeddings, and a block or two."""
    update: int
    """What the optimizer's update takes besides, which for AdamW is nothing."""
    saved: int
    """What the rank that writes gathers of a sharded model for a checkpoint, in main memory."""
    rest: int
    """PyTorch itself, and what the C library cannot use again."""
    peak: int
    """All that is there at the worst moment: in the backward pass, in the update, or while saving."""


@dataclass(frozen=True)
class Plan:
    """A run in figures, computed from its config and the size of its corpus alone."""

    parameters: int
    corpus_tokens: int | None
    """None where the corpus has not been prepared yet."""
    tokens_per_step: int
    tokens: int
    flops_per_token: int
    """Floating-point operations of a forward and backward pass."""
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
        if (self.epochs > 1 and self.parameters > 5 * self.corpus_tokens) or self.epochs > 30:
            return (
                f"the corpus is small for this run: {self.parameters:,} parameters see "
                f"{self.corpus_tokens:,} tokens {self.epochs:.1f} times and may learn them by heart; "
                "more text, a smaller model, fewer steps or model.dropout help, "
                "and the best checkpoint is kept anyway"
            )
        return None

    def __str__(self) -> str:
        corpus = "" if self.corpus_tokens is None else f"{self.corpus_tokens:,} training tokens; "
        epochs = "" if self.epochs is None else f", {self.epochs:.1f} epochs"
        warning = f"\nwarning: {self.warning}" if self.warning else ""
        return (
            f"{self.parameters:,} parameters; {corpus}{self.tokens_per_step:,} tokens per step; "
            f"{self.tokens:,} in all{epochs}; about {mebibytes(self.memory.peak)} of memory{warning}"
        )


def plan(
    config: Config, model: GPTConfig, corpus_tokens: int | None, precision: str, world_size: int = 1
) -> Plan:
    """The figures of training `model` by `config` on `corpus_tokens` tokens, on one of `world_size` ranks.

    `precision` is fp32, bf16 or fp16: `runtime.precision` with `auto` resolved.
    """
    tokens_per_step = config.train.batch_size * model.context_length
    return Plan(
        parameters=count_parameters(model),
        corpus_tokens=corpus_tokens,
        tokens_per_step=tokens_per_step,
        tokens=config.train.max_steps * tokens_per_step,
        flops_per_token=flops_per_token(model),
        memory=_memory(config, model, precision, world_size),
    )


def micro_batch_size_per_rank(train: TrainConfig, world_size: int) -> int:
    """Sequences that each of `world_size` ranks takes through the model in one forward pass.

    Raises UserError where the ranks cannot share a batch evenly.

    >>> micro_batch_size_per_rank(TrainConfig(batch_size=12), world_size=3)
    4
    """
    if train.batch_size % (world_size * (train.micro_batch_size or 1)):
        of = f"micro_batch_size = {train.micro_batch_size} times " if train.micro_batch_size else ""
        raise UserError(
            f"train.batch_size = {train.batch_size}: needs to be a multiple of {of}{world_size} ranks"
        )
    return train.micro_batch_size or train.batch_size // world_size


def count_parameters(model: GPTConfig) -> int:
    """Number of trainable values; the tied output table counts once.

    >>> count_parameters(GPTConfig(n_layer=12, n_head=12, n_embd=768, context_length=1024))  # GPT-2 small
    124439808
    """
    C = model.n_embd
    block = _block_matrices(model) + 2 * C + (11 * C if model.bias else 0)
    final = 2 * C if model.bias else C
    return (model.vocab_size + model.context_length) * C + model.n_layer * block + final


def flops_per_token(model: GPTConfig) -> int:
    """Floating-point operations of training on one token: forward, and twice as many backward.

    6 for each weight that multiplies (Kaplan et al., 2020: a product and a sum, three times), the tied output
    table included and the looked-up positions left out, and 12 n_layer n_embd context_length for attention,
    whose closed half is counted too, as PaLM's authors do (Chowdhery et al., 2022, appendix B).
    """
    multiplying = count_parameters(model) - model.context_length * model.n_embd
    return 6 * multiplying + 12 * model.n_layer * model.n_embd * model.context_length


def _memory(config: Config, model: GPTConfig, precision: str, world_size: int) -> Memory:
    on_cpu = config.runtime.device in ("auto", "cpu")
    sharded = config.runtime.parallel == "fsdp" and world_size > 1
    recompute = config.runtime.activation_checkpointing
    shares = world_size if sharded else 1
    parameters = count_parameters(model)
    block_matrices = model.n_layer * _block_matrices(model)
    micro_batch_size = micro_batch_size_per_rank(config.train, world_size)
    accumulates = micro_batch_size * world_size < config.train.batch_size
    muon = config.optim.optimizer == "muon"
    width = 4 if precision == "fp32" else 2  # bytes of a number in a product
    B, T, V = micro_batch_size, model.context_length, model.vocab_size

    copies = 0 if width == 4 or sharded else width * (block_matrices + V * model.n_embd)
    weights = 4 * parameters // shares + copies
    averages = 4 * (2 * parameters - (block_matrices if muon else 0))
    optimizer, gradients = averages // shares, 4 * parameters // shares
    block = B * block_bytes_per_sequence(model, precision, on_cpu=on_cpu)
    activations = B * activation_bytes_per_sequence(model, precision, on_cpu=on_cpu, recompute=recompute)
    # The logits as the model gives them, and in float32 their log-softmax, its gradient and theirs. While
    # gradients accumulate, the logits of the micro batch before are still there.
    logits = B * T * V * ((2 if accumulates else 1) * width + 4 + 4 + 4)
    gathered = _gathered_bytes(model, width) if sharded else 0
    update = _muon_bytes(model, 4 if on_cpu and width == 4 else 2) if muon else 0
    saved = 4 * (parameters + block_matrices) + averages if sharded else 0  # GPT-2's files transpose matrices

    rest = PYTORCH_BYTES + (RANKS_BYTES if world_size > 1 else 0) + (FRAGMENTATION_BYTES if on_cpu else 0)
    if (
        on_cpu and not sharded and not recompute
    ):  # freed memory is kept (runtime.keep_freed_memory): all adds up
        rest += activations // 4 + (gradients // 2 if world_size > 1 else 0)  # DDP makes its buckets twice
        working = activations + (logits + gradients if accumulates else max(logits, gradients)) + update
    else:
        begins = activations + max(logits, gathered) + (gradients if accumulates else 0)
        ends = gradients + gathered + (block if recompute else 0)
        working = max(begins, ends, gradients + update, saved if on_cpu else 0)
    return Memory(
        weights=weights,
        optimizer=optimizer,
        gradients=gradients,
        activations=activations,
        logits=logits,
        gathered=gathered,
        update=update,
        saved=saved,
        rest=rest,
        peak=weights + optimizer + working + rest,
    )


def activation_bytes_per_sequence(
    model: GPTConfig, precision: str, *, on_cpu: bool = True, recompute: bool = False
) -> int:
    """What a forward pass over context_length tokens keeps for the backward pass, in bytes, without logits.

    Under autocast the residual stream stays float32, and what enters a matrix product is kept in `precision`.
    Where blocks are computed `again` in the backward pass, one of them is kept whole at a time, and of each
    what goes into it.
    """
    T, C, L = model.context_length, model.n_embd, model.n_layer
    width = 4 if precision == "fp32" else 2
    final = width * C + 4 * (C + 2)
    if model.dropout:
        final += (4 if on_cpu else 1) * C
    block = block_bytes_per_sequence(model, precision, on_cpu=on_cpu)
    return T * final + (L * 4 * T * C + block if recompute else L * block)


def block_bytes_per_sequence(model: GPTConfig, precision: str, *, on_cpu: bool = True) -> int:
    """The share of one block in that."""
    C = model.n_embd
    width = 4 if precision == "fp32" else 2
    # In the products' format a block keeps the normalised inputs of attention and MLP (2 C), q, k and v
    # (3 C), the mixed values (C), and the MLP's inside before and after its GELU (8 C); in float32 the
    # residual stream before each of its two parts (2 C), and a mean and a deviation for each LayerNorm.
    token = width * 14 * C + 4 * (2 * C + 4)
    if model.dropout:  # which drawn numbers multiply what attention and MLP give
        token += 2 * (width if on_cpu else 1) * C
    return model.context_length * (token + _attention_bytes_per_token(model, width, on_cpu))


def _attention_bytes_per_token(model: GPTConfig, width: int, on_cpu: bool) -> int:
    """What is kept in a block of the scores of one query, all heads together."""
    scores = model.n_head * model.context_length
    if model.attention != "sdpa":
        dropped = (width + (width if on_cpu else 1)) if model.dropout else 0
        return scores * (width + dropped)
    if model.dropout and on_cpu:  # the fused kernel of the CPU knows no dropout: all in float32
        return scores * 3 * 4 + (4 - width) * 3 * model.n_embd
    return 4 * model.n_head  # the logarithm of each softmax's sum


def _gathered_bytes(model: GPTConfig, width: int) -> int:
    """What FSDP2 holds whole in the backward pass, in the products' format: the embeddings and their gradient
    all the time, a block, its gradient and the next block; and the gradient in float32, to be summed."""
    C = model.n_embd
    embeddings = (model.vocab_size + model.context_length) * C
    return width * 2 * embeddings + (3 * width + 4) * _block_matrices(model)


def _muon_bytes(model: GPTConfig, width: int) -> int:
    """What Muon's update takes at its worst: on the two MLP matrices of all blocks together."""
    C = model.n_embd
    largest = model.n_layer * 8 * C * C
    grams = model.n_layer * 2 * C * C
    # In float32 the updates, and the same as one tensor; besides, either that normalised in float32, or the
    # iterates before and after one round and the two products of rows by rows between them, in the products'
    # format.
    return 4 * 2 * largest + max(4 * largest, width * (2 * largest + 2 * grams))


def _block_matrices(model: GPTConfig) -> int:
    """Weights of a block's matrices: c_attn 3, attention's c_proj 1, c_fc 4, the MLP's c_proj 4."""
    return 12 * model.n_embd**2


def mebibytes(size: int) -> str:
    """Bytes in MiB, for people."""
    return f"{size / 2**20:,.0f} MiB"
