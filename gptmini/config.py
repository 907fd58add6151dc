"""Everything that can be set: the schema of the YAML file, with a type, a default, a rule and a sentence
for each key, and how such a file is loaded and written.

A function takes the section it needs, never the whole Config. Nothing here imports torch, so `--help` and
config errors answer at once.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from gptmini.paths import PathText, path_argument
from gptmini.schema import Section, format_value, validate
from gptmini.yaml_io import dump_yaml, read_yaml

Device = (
    Literal["auto", "cpu", "cuda", "mps"]
    | Annotated[str, Field(pattern=r"^cuda:[0-9]{1,3}$", examples=["cuda:0"])]
)

# Bounds keep sizes, and products of a few of them, numbers that can be computed.
Count = Annotated[int, Field(ge=1, le=10**9)]
Sequences = Annotated[int, Field(ge=1, le=10**6)]

Attention = Annotated[
    Literal["eager", "additive", "sdpa"],
    BeforeValidator(lambda value: "eager" if value == "masked" else value),  # its name in older files
]


class ModelConfig(Section):
    """The shape of the GPT; the defaults suit a laptop.

    GPT-2's four sizes are 12/12/768, 24/16/1024, 36/20/1280 and 48/25/1600, all with context 1024.
    """

    foreign_names: ClassVar = {  # in nanoGPT and transformers, as far as they are not alike
        **dict.fromkeys(("block_size", "n_positions", "n_ctx", "seq_len", "max_seq_len"), "context_length"),
        **dict.fromkeys(("d_model", "hidden_size"), "n_embd"),
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
    }

    n_layer: int = Field(4, ge=1, le=1024, description="Number of blocks.")
    n_head: int = Field(4, ge=1, le=1024, description="Attention heads per block.")
    n_embd: int = Field(128, ge=1, le=2**17, description="Width of the residual stream; n_head divides it.")
    context_length: int = Field(
        128, ge=1, le=2**14, description="The longest sequence it can see, in tokens."
    )
    dropout: float = Field(
        0.0, ge=0.0, lt=1.0, description="Probability that an activation is zeroed in training."
    )
    bias: bool = Field(True, description="Biases in the Linear and LayerNorm layers, as GPT-2 has them.")
    attention: Attention = Field(
        "eager",
        description="eager: tril and masked_fill_, the one to read; additive: the same bits and a faster "
        "backward pass, for CPUs at short contexts; sdpa: PyTorch's fused kernel, for long contexts, GPUs.",
    )

    @model_validator(mode="after")  # a rule between keys; the message names them
    def _heads_divide_width(self) -> "ModelConfig":
        if self.n_embd % self.n_head:
            raise ValueError(
                f"n_embd = {self.n_embd} must be a multiple of n_head = {self.n_head}, "
                "because the heads share the width equally"
            )
        return self


class GPTConfig(ModelConfig):
    """What `GPT` is built from: its shape, and the vocabulary size that the tokenizer decides.

    >>> GPTConfig(n_layer=2, n_head=2, n_embd=64, context_length=32, vocab_size=65).head_dim
    32
    """

    vocab_size: int = Field(50257, ge=1, le=2**24, description="Number of token ids.")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.n_embd // self.n_head

    def to_dict(self) -> dict[str, Any]:
        """The config as transformers' have it, for tools such as peft that ask a model for it."""
        return {"model_type": "gpt2", "tie_word_embeddings": True, **self.model_dump()}


class DataConfig(Section):
    """Where the text comes from."""

    corpus: Annotated[
        PathText | Annotated[tuple[PathText, ...], Field(min_length=1, strict=False)],
        Field(
            description="A named corpus, a text file, a folder, a glob, - for standard input, or a list "
            "of these."
        ),
    ] = "python-docs"
    val_corpus: Annotated[
        PathText | Annotated[tuple[PathText, ...], Field(min_length=1, strict=False)] | None,
        Field(description="A separate validation text, given like corpus; null: a part of corpus."),
    ] = None
    val_fraction: float = Field(
        0.1,
        gt=0.0,
        lt=1.0,
        description="Share of the text, at its end, that is the validation split, without val_corpus.",
    )
    text_field: str = Field(
        "text", description="The field of JSON lines, or column of parquet, that holds the text."
    )
    errors: Literal["strict", "replace", "ignore"] = Field(
        "strict",
        description="Bytes that are not UTF-8: strict refuses them (only the tokenizer bytes takes them), "
        "replace puts U+FFFD in their place, ignore drops them.",
    )

    @model_validator(mode="after")
    def _standard_input_is_read_once(self) -> "DataConfig":
        if all("-" in ((c,) if isinstance(c, str) else c or ()) for c in (self.corpus, self.val_corpus)):
            raise ValueError(
                "corpus and val_corpus are both -: standard input can be read once only; name a file for one"
            )
        return self


class TokenizerConfig(Section):
    """How text becomes token ids."""

    kind: Literal["gpt2", "bpe", "bytes", "chars"] = Field(
        "bpe",
        description="gpt2: GPT-2's 50,257 tokens; bpe: byte pairs learned from the corpus; bytes: one token "
        "per byte; chars: one token per character of the corpus.",
    )
    vocab_size: int | None = Field(
        None,
        ge=257,
        le=1_000_000,
        description="Number of tokens for bpe (default 1024), end-of-text included.",
    )
    folder: PathText | None = Field(
        None,
        description="A folder with tokenizer.json, or vocab.json and merges.txt, such as a Hugging Face "
        "GPT-2 directory: bpe reads it instead of learning, gpt2 finds its files there.",
    )
    byte_fallback: bool = Field(
        False, description="chars only: 256 more tokens, so that no character is ever unknown."
    )

    @model_validator(mode="after")
    def _keys_fit_the_kind(self) -> "TokenizerConfig":
        if self.vocab_size is not None and (self.kind != "bpe" or self.folder is not None):
            owner = "a folder's tokenizer" if self.kind == "bpe" else self.kind
            raise ValueError(
                f"vocab_size = {self.vocab_size} is for kind bpe only; {owner} has a size of its own, "
                "so leave the key out"
            )
        if self.folder is not None and self.kind not in ("bpe", "gpt2"):
            raise ValueError(
                f"folder = {format_value(self.folder)} is for the kinds bpe and gpt2; {self.kind} reads no "
                "files, so leave the key out"
            )
        if self.byte_fallback and self.kind != "chars":
            raise ValueError(
                f"byte_fallback = true is for kind chars only; {self.kind} knows every character anyway, "
                "so leave the key out"
            )
        return self


class OptimConfig(Section):
    """The optimizer and its learning rate."""

    foreign_names: ClassVar = {"learning_rate": "lr"}

    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: Muon for the matrices of the blocks, AdamW for everything else."
    )
    lr: float = Field(1e-3, gt=0.0, description="AdamW's peak learning rate.")
    muon_lr: float = Field(0.02, gt=0.0, description="Muon's peak learning rate; read with optimizer: muon.")
    muon_momentum: float = Field(0.95, ge=0.0, lt=1.0, description="Muon's momentum; 0.9 suits short runs.")
    weight_decay: float = Field(
        0.1, ge=0.0, description="Weight decay of the matrices; biases and LayerNorm have none."
    )
    betas: Annotated[
        tuple[Annotated[float, Field(ge=0.0, lt=1.0)], Annotated[float, Field(ge=0.0, lt=1.0)]],
        Field(
            strict=False,
            description="AdamW's decay rates for the averages of the gradient and of its square.",
        ),
    ] = (0.9, 0.95)
    warmup_steps: int = Field(0, ge=0, le=10**9, description="Steps in which the rate rises from zero.")
    schedule: Literal["cosine", "linear", "wsd", "constant"] = Field(
        "cosine",
        description="How the rate falls after warm-up; wsd (warm-up, stable, decay) stays at the peak and "
        "falls linearly over the last fifth.",
    )
    min_lr_ratio: float = Field(0.1, ge=0.0, le=1.0, description="Final learning rate / peak rate.")
    grad_clip: float = Field(1.0, ge=0.0, description="Gradients are scaled down to this norm; 0: never.")


class TrainConfig(Section):
    """The training run: steps, batch size, evaluation, checkpoints."""

    out_dir: PathText = Field(
        "runs/default", description="The run folder; a folder with a run in it is refused."
    )
    max_steps: Count = Field(1000, description="Optimizer steps.")
    batch_size: Sequences = Field(32, description="Sequences per optimizer step, over all ranks.")
    micro_batch_size: Literal["auto"] | Sequences | None = Field(
        None,
        description="Sequences per forward pass on one rank; null: all of the rank's share; auto: the share, "
        "halved until a step fits into memory.",
    )
    seed: int = Field(
        0, ge=0, lt=2**63, description="Seed of the initial weights, the data order and dropout."
    )
    eval_interval: Count = Field(200, description="Steps between evaluations; the last step is evaluated.")
    eval_tokens: Count | None = Field(
        None, description="Validation tokens per evaluation; null: the whole split."
    )
    early_stop_patience: Count | None = Field(
        None, description="Stop after this many evaluations without a new best; null: never."
    )
    sample_interval: Count | None = Field(None, description="Steps between text samples; null: none.")
    checkpoint_interval: Count | None = Field(
        None, description="Steps between checkpoints; null: only the best and the last."
    )
    keep_checkpoints: Count = Field(2, description="Newest checkpoints kept, besides the best.")
    log_interval: Count = Field(10, description="Steps between lines of metrics.jsonl.")
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = Field(
        (), strict=False, description="Trackers that also get the metrics of metrics.jsonl."
    )
    init_from: PathText | None = Field(
        None,
        description="A checkpoint, a GPT-2 folder or a name on the Hugging Face Hub to start from, tokenizer "
        "included; null: random weights.",
    )

    @model_validator(mode="after")
    def _micro_batches_fill_the_batch(self) -> "TrainConfig":
        if isinstance(self.micro_batch_size, int) and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size = {self.batch_size} must be a multiple of micro_batch_size = "
                f"{self.micro_batch_size}"
            )
        return self


class RuntimeConfig(Section):
    """The hardware: device, precision, threads, parallelism."""

    device: Device = Field("auto", description="Device to compute on; auto: CUDA, else MPS, else the CPU.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="Number format of the forward pass; auto: bf16 if the hardware has it."
    )
    compile: bool = Field(False, description="Compile the model with torch.compile.")
    threads: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = Field(
        "auto",
        description="CPU threads; auto: PyTorch's default, or under torchrun the rank's share of the cores.",
    )
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="Under torchrun, ddp: each rank holds the whole model; fsdp: the ranks shard it.",
    )
    activation_checkpointing: bool = Field(
        False, description="Recompute each block in the backward pass instead of keeping its activations."
    )
    rank_timeout_seconds: float = Field(
        600.0,
        gt=0.0,
        le=1e6,
        description="Under torchrun, how long a rank waits for the others before the run ends.",
    )


class Config(Section):
    """Train a GPT. Every key can be set in the YAML file and overridden on the command line."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    runtime: RuntimeConfig = RuntimeConfig()


def load_config(path: str | Path | None, overrides: Mapping[str, Any] | None = None) -> Config:
    """The config in the YAML file at `path` (None: all defaults), with dotted keys of `overrides` on top.

    Raises UserError, one line naming file, key, value and rule, for whatever is wrong in it.
    """
    # Precedence: defaults, then the file, then the overrides.
    values = {}
    if path is not None:
        needed = "load_config takes the path of a YAML file, and Config(**sections) a dict"
        values = read_yaml(str(path_argument(path, needed)))
    for dotted, value in (overrides or {}).items():
        section, _, key = dotted.rpartition(".")
        group = values.setdefault(section, {}) if section else values
        if isinstance(group, dict):  # otherwise the schema reports what stands there instead
            group[key] = value
    return validate(Config, values, "command line" if path is None else str(path), overrides or {})


def dump_config(config: Config, complete: bool = True) -> str:
    """The config as YAML text that `load_config` reads back to an equal object.

    Every key stands in it, or, if not `complete`, those that are not at their defaults.
    """
    return dump_yaml(config.model_dump(mode="json", exclude_defaults=not complete))


def flatten_config(config: Config) -> dict[str, Any]:
    """The config's values by dotted key, such as `optim.lr`, as JSON has them."""
    sections = config.model_dump(mode="json")
    return {f"{section}.{key}": value for section, keys in sections.items() for key, value in keys.items()}
