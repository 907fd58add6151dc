"""What is about to happen, in figures: parameters, tokens, epochs, memory. Printed before the first step."""

from dataclasses import dataclass

from gptmini.config import Config, GPTConfig


@dataclass(frozen=True)
class Plan:
    """A run in figures, computed from its config and the size of its corpus alone."""

    parameters: int
    corpus_tokens: int
    tokens_per_step: int
    tokens: int
    weight_bytes: int
    """Weights, their gradients, and the optimizer's averages, all float32."""
    activation_bytes: int
    """What the forward pass keeps for the backward pass of one micro batch."""

    @property
    def epochs(self) -> float:
        """How often the run sees the corpus."""
        return self.tokens / self.corpus_tokens

    @property
    def warning(self) -> str | None:
        """Why this corpus is too small for this model, or None."""
        if self.parameters > 5 * self.corpus_tokens or self.epochs > 30:
            return (
                f"the corpus is small for this run: {self.parameters:,} parameters see "
                f"{self.corpus_tokens:,} tokens {self.epochs:.1f} times and may learn them by heart; "
                "more text, a smaller model, fewer steps or model.dropout help, "
                "and the best checkpoint is kept anyway"
            )
        return None

    def __str__(self) -> str:
        memory = self.weight_bytes + self.activation_bytes
        warning = f"\nwarning: {self.warning}" if self.warning else ""
        return (
            f"{self.parameters:,} parameters; {self.corpus_tokens:,} training tokens; "
            f"{self.tokens_per_step:,} tokens per step; {self.tokens:,} in all, {self.epochs:.1f} epochs; "
            f"about {memory / 2**20:,.0f} MiB of memory besides PyTorch itself{warning}"
        )


def plan(config: Config, model: GPTConfig, corpus_tokens: int) -> Plan:
    """The figures of training `model` by `config` on `corpus_tokens` tokens."""
    micro_batch_size = config.train.micro_batch_size or config.train.batch_size
    parameters = count_parameters(model)
    tokens_per_step = config.train.batch_size * model.context_length
    momenta = 2 if config.optim.optimizer == "adamw" else 1  # Muon keeps one average for its matrices
    bytes_per_value = 4 if config.runtime.precision in ("fp32", "auto") else 2
    return Plan(
        parameters=parameters,
        corpus_tokens=corpus_tokens,
        tokens_per_step=tokens_per_step,
        tokens=config.train.max_steps * tokens_per_step,
        weight_bytes=4 * parameters * (2 + momenta),
        activation_bytes=bytes_per_value * micro_batch_size * _activations_per_sequence(model),
    )


def count_parameters(model: GPTConfig) -> int:
    """Number of trainable values; the tied output table counts once.

    >>> count_parameters(GPTConfig(n_layer=12, n_head=12, n_embd=768, context_length=1024))  # GPT-2 small
    124439808
    """
    C = model.n_embd
    matrices = 12 * C * C  # c_attn 3, attention's c_proj 1, c_fc 4, the MLP's c_proj 4
    block = matrices + 2 * C + (11 * C if model.bias else 0)
    final = 2 * C if model.bias else C
    return (model.vocab_size + model.context_length) * C + model.n_layer * block + final


def _activations_per_sequence(model: GPTConfig) -> int:
    """Values kept for the backward pass, for one sequence of context_length tokens."""
    T, C = model.context_length, model.n_embd
    # A block keeps the two normalised inputs and what they came from (4 C), q, k, v and the scaled q (4 C),
    # the mixed values (C), and the MLP before and after its GELU (8 C).
    block = 17 * C
    scores = 2 * model.n_head * T if model.attention == "masked" else 0  # scores and weights
    logits = 3 * model.vocab_size  # logits, their log-softmax, its gradient
    return T * (model.n_layer * (block + scores) + 4 * C + logits)
