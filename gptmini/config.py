"""The YAML file as one typed, frozen object.

Nothing here imports torch, so `--help` and every config error answer at once. A key is described here and
nowhere else: this file makes the YAML schema, the command line, its help and its error messages.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from gptmini.errors import UserError


class Section(BaseModel):
    """A group of keys: frozen, no unknown keys, no silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ModelConfig(Section):
    """The shape of the GPT. GPT-2's four sizes are 12/12/768, 24/16/1024, 36/20/1280 and 48/25/1600."""

    n_layer: int = Field(12, ge=1, description="Number of blocks.")
    n_head: int = Field(12, ge=1, description="Attention heads per block.")
    n_embd: int = Field(768, ge=1, description="Width of the residual stream; a multiple of n_head.")
    context_length: int = Field(1024, ge=1, description="Longest sequence the model can see, in tokens.")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="Share of activations dropped while training.")
    bias: bool = Field(True, description="Biases in the Linear and LayerNorm layers, as GPT-2 has them.")
    attention: Literal["masked", "sdpa"] = Field(
        "masked",
        description="masked: tril and masked_fill_, the one to read, and fast on CPUs at short contexts; "
        "sdpa: PyTorch's fused kernel, for long contexts and GPUs. Both compute the same.",
    )

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "ModelConfig":
        if self.n_embd % self.n_head:
            raise ValueError(
                f"n_embd = {self.n_embd} must be a multiple of n_head = {self.n_head}, "
                "because the heads share the width equally"
            )
        return self


class GPTConfig(ModelConfig):
    """A whole model: its shape, and the vocabulary size that the tokenizer brings.

    >>> GPTConfig(n_layer=2, n_head=2, n_embd=64, context_length=32, vocab_size=65).head_dim
    32
    """

    vocab_size: int = Field(50257, ge=1, description="Number of token ids.")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.n_embd // self.n_head


class DataConfig(Section):
    """Where the text comes from."""

    corpus: Annotated[
        str | Annotated[tuple[str, ...], Field(min_length=1, strict=False)],
        Field(description="A named corpus, a text file, a folder, a glob, or a list of these."),
    ] = "python-docs"
    val_fraction: float = Field(
        0.1, gt=0.0, lt=1.0, description="Share of the text, taken from its end, kept for validation."
    )


class TokenizerConfig(Section):
    """How text becomes token ids."""

    kind: Literal["gpt2", "bpe", "bytes", "chars"] = Field(
        "bpe",
        description="gpt2: GPT-2's 50,257 tokens; bpe: byte pairs learned from the corpus; bytes: one token "
        "per byte; chars: one token per character of the corpus.",
    )
    vocab_size: int | None = Field(
        None, ge=257, description="Number of tokens for bpe (default 1024), end-of-text included."
    )

    @model_validator(mode="after")
    def _vocab_size_is_for_bpe(self) -> "TokenizerConfig":
        if self.vocab_size is not None and self.kind != "bpe":
            raise ValueError(
                f"vocab_size = {self.vocab_size} is for kind bpe only; {self.kind} has a size of its own, "
                "so leave the key out"
            )
        return self


class OptimConfig(Section):
    """The optimizer and its learning rate."""

    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: Muon on the block matrices and AdamW on everything else."
    )
    lr: float = Field(1e-3, gt=0.0, description="AdamW's peak learning rate.")
    muon_lr: float = Field(0.02, gt=0.0, description="Muon's peak learning rate; read with optimizer: muon.")
    weight_decay: float = Field(0.1, ge=0.0, description="Weight decay of matrices; vectors get none.")
    betas: Annotated[
        tuple[Annotated[float, Field(ge=0.0, lt=1.0)], Annotated[float, Field(ge=0.0, lt=1.0)]],
        Field(strict=False, description="AdamW's averaging rates for the gradient and its square."),
    ] = (0.9, 0.95)
    warmup_steps: int = Field(0, ge=0, description="Steps over which the rate rises linearly from zero.")
    schedule: Literal["cosine", "linear", "wsd", "constant"] = Field(
        "cosine",
        description="How the rate falls after warm-up; wsd stays at the peak and falls linearly over the "
        "last fifth.",
    )
    min_lr_ratio: float = Field(0.1, ge=0.0, le=1.0, description="Final learning rate / peak rate.")
    grad_clip: float = Field(1.0, ge=0.0, description="Largest gradient norm; 0 does not clip.")


class TrainConfig(Section):
    """The run: how long, how large the batches, what is reported and kept."""

    out_dir: str = Field("runs/default", min_length=1, description="The run folder; must be new or empty.")
    max_steps: int = Field(1000, ge=1, description="Optimizer steps.")
    batch_size: int = Field(32, ge=1, description="Sequences per optimizer step, over all devices.")
    micro_batch_size: int | None = Field(
        None, ge=1, description="Sequences per forward pass on one device; null: the whole batch_size."
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Decides the initial weights, data order and dropout.")
    eval_interval: int = Field(
        200, ge=1, description="Steps between evaluations; the last step is evaluated."
    )
    eval_tokens: int | None = Field(
        None, ge=1, description="Validation tokens per evaluation; null: the whole split."
    )
    early_stop_patience: int | None = Field(
        None, ge=1, description="Stop after this many evaluations without a new best; null: never."
    )
    sample_interval: int | None = Field(None, ge=1, description="Steps between text samples; null: none.")
    checkpoint_interval: int | None = Field(
        None, ge=1, description="Steps between checkpoints; null: only the best and the last."
    )
    keep_checkpoints: int = Field(2, ge=1, description="Newest checkpoints kept, besides the best.")
    log_interval: int = Field(10, ge=1, description="Steps between lines of metrics.jsonl.")
    init_from: str | None = Field(
        None, description="A checkpoint or Hugging Face GPT-2 folder to start from; null: random weights."
    )

    @model_validator(mode="after")
    def _micro_batches_fill_the_batch(self) -> "TrainConfig":
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size = {self.batch_size} must be a multiple of micro_batch_size = "
                f"{self.micro_batch_size}"
            )
        return self


class RuntimeConfig(Section):
    """The machine."""

    device: str = Field(
        "auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto, cpu, cuda, cuda:N or mps."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="Number format of the forward pass; auto: bf16 where the hardware has it."
    )
    compile: bool = Field(False, description="Compile the model with torch.compile.")
    threads: Literal["auto"] | Annotated[int, Field(ge=1)] = Field("auto", description="CPU threads.")


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
    values = {} if path is None else read_yaml(path)
    for dotted, value in (overrides or {}).items():
        section, _, key = dotted.rpartition(".")
        group = values.setdefault(section, {}) if section else values
        if isinstance(group, dict):  # otherwise the schema reports what stands there instead
            group[key] = value
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError(explain(error, Config, str(path), overrides or {})) from None


def dump_config(config: Config) -> str:
    """The resolved config as YAML text that `load_config` reads back to an equal object."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def explain(
    error: ValidationError, schema: type[Section], source: str, from_command_line: Iterable[str] = ()
) -> str:
    """The first problem of a ValidationError in one line: source, key, value, rule, and what to do."""
    details = error.errors()
    first = details[0]
    path = _schema_path(first["loc"], schema)
    key = ".".join(path)
    where = "command line" if key in set(from_command_line) else source
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown key {key}{did_you_mean(key, flat_keys(schema))}{more}"
    if first["type"] == "missing":
        return f"{where}: {key} is missing{more}"
    rule = _rule(first)
    if first["type"] == "value_error":  # a rule between keys: its message names them
        return f"{where}: {key + ': ' if key else ''}{rule}{more}"
    return f"{where}: {key} = {first['input']!r}: {rule}{more}"


def flat_keys(schema: type[Section]) -> list[str]:
    """Every dotted key of a schema.

    >>> flat_keys(Config)[:3]
    ['model.n_layer', 'model.n_head', 'model.n_embd']
    """
    keys: list[str] = []
    for name, field in schema.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            keys += [f"{name}.{inner}" for inner in flat_keys(field.annotation)]
        else:
            keys.append(name)
    return keys


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the known name nearest to a mistyped one, or nothing.

    >>> did_you_mean("train.max_step", ["train.max_steps", "train.seed"])
    '; did you mean train.max_steps?'
    """
    known = list(known)
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.6)
    if not close:  # the right key in the wrong section, or without one
        last = given.rpartition(".")[2]
        tails = {name.rpartition(".")[2]: name for name in known}
        close = [tails[t] for t in difflib.get_close_matches(last, tails, n=1, cutoff=0.75)]
    return f"; did you mean {close[0]}?" if close else ""


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file as a dict, read by the YAML 1.2 rules that people expect.

    Numbers like `3e-4` are numbers, `no` is a word and `1:30` is text; a key given twice is an error, and
    so is a file that is empty or holds no mapping.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except FileNotFoundError:
        raise UserError(f"{path}: no such config file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        values = parse_yaml(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise UserError(f"{path}: {place}{' '.join(str(error.problem).split())}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply for a config") from None
    if not isinstance(values, dict):
        found = "is empty" if values is None else f"holds a {type(values).__name__}"
        raise UserError(f"{path}: {found}, but a config is a mapping of sections such as `model:`")
    return values


def parse_yaml(text: str) -> Any:
    """YAML text by the 1.2 rules for numbers and words.

    >>> parse_yaml("{lr: 3e-4, corpus: no, when: 1:30, bias: true, steps: 1_000}")
    {'lr': 0.0003, 'corpus': 'no', 'when': '1:30', 'bias': True, 'steps': '1_000'}
    """
    return yaml.load(text, _Yaml12Loader)


class _Yaml12Loader(yaml.SafeLoader):
    """PyYAML's safe loader with YAML 1.2's core schema in place of 1.1's surprises."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be a word", key_node.start_mark
                )
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key_node.value} is given twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return {str(key): value for key, value in super().construct_mapping(node, deep).items()}


for _tag, _pattern, _first in [
    ("null", r"null|Null|NULL|~|", ["n", "N", "~", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
]:
    _Yaml12Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    if len(text) > 300:  # Python refuses to convert very long digit strings with a message of its own
        raise yaml.constructor.ConstructorError(None, None, "number is too long", node.start_mark)
    return int(text)


_Yaml12Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Yaml12Loader.add_constructor(
    "tag:yaml.org,2002:float",
    lambda loader, node: float(re.sub(r"(?i)\.(inf|nan)", r"\1", loader.construct_scalar(node))),
)


def _schema_path(location: tuple[int | str, ...], schema: type[Section]) -> list[str]:
    """The keys in a pydantic error location, without the union members that pydantic puts behind them."""
    path: list[str] = []
    current: Any = schema
    for part in location:
        if not (isinstance(current, type) and issubclass(current, Section)):
            break
        path.append(str(part))
        field = current.model_fields.get(str(part))
        current = field.annotation if field else None
    return path


_TYPE_RULES = {
    "int_type": "needs a whole number",
    "int_from_float": "needs a whole number",
    "float_type": "needs a number",
    "bool_type": "needs true or false",
    "string_type": "needs text (quote it if it looks like a number)",
    "tuple_type": "needs a list",
    "finite_number": "needs a finite number",
    "model_type": "needs a mapping of keys",
    "model_attributes_type": "needs a mapping of keys",
}


def _rule(detail: ErrorDetails) -> str:
    if detail["type"] == "value_error":
        return str(detail["ctx"]["error"])
    message = _TYPE_RULES.get(detail["type"]) or detail["msg"].replace("Input should", "must")
    return message[0].lower() + message[1:]


def accepts_text(annotation: Any) -> bool:
    """Whether a field takes any string, so that a command-line word like 123 stays a word."""
    if get_origin(annotation) in (Union, type(int | str), Annotated):
        return any(accepts_text(member) for member in get_args(annotation))
    return annotation is str or (get_origin(annotation) is tuple and str in get_args(annotation))
