"""The YAML file as one typed, frozen object.

Nothing here imports torch, so `--help` and every config error answer at once. A key is described here and
nowhere else: this file makes the YAML schema, the command line, its help and its error messages.
"""

import difflib
import json
import re
import reprlib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gptmini.errors import UserError


class Section(BaseModel):
    """A group of keys: frozen, no unknown keys, no silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


PathText = Annotated[str, Field(pattern=r"^[^\x00]+$", json_schema_extra={"format": "path"})]
Device = (
    Literal["auto", "cpu", "cuda", "mps"]
    | Annotated[str, Field(pattern=r"^cuda:[0-9]{1,3}$", examples=["cuda:0"])]
)


class ModelConfig(Section):
    """The shape of the GPT; the defaults suit a laptop.

    GPT-2's four sizes are 12/12/768, 24/16/1024, 36/20/1280 and 48/25/1600, all with context 1024.
    """

    n_layer: int = Field(4, ge=1, description="Number of blocks.")
    n_head: int = Field(4, ge=1, description="Attention heads per block.")
    n_embd: int = Field(128, ge=1, description="Width of the residual stream; a multiple of n_head.")
    context_length: int = Field(128, ge=1, description="Longest sequence the model can see, in tokens.")
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
        PathText | Annotated[tuple[PathText, ...], Field(min_length=1, strict=False)],
        Field(
            description="A named corpus, a text file, a folder, a glob, - for standard input, or a list "
            "of these."
        ),
    ] = "python-docs"
    val_corpus: Annotated[
        PathText | Annotated[tuple[PathText, ...], Field(min_length=1, strict=False)] | None,
        Field(description="A text of its own for validation, given like corpus; null: a part of corpus."),
    ] = None
    val_fraction: float = Field(
        0.1,
        gt=0.0,
        lt=1.0,
        description="Share of the text, taken from its end, kept for validation, without val_corpus.",
    )
    text_field: str = Field(
        "text", description="The field of JSON lines, or column of parquet, that holds the text."
    )
    errors: Literal["strict", "replace", "ignore"] = Field(
        "strict",
        description="Bytes that are not UTF-8: strict refuses them (only the tokenizer bytes takes them), "
        "replace puts U+FFFD in their place, ignore drops them.",
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

    folder: PathText | None = Field(
        None,
        description="A folder with tokenizer.json, or vocab.json and merges.txt, such as a Hugging Face "
        "GPT-2 directory: bpe reads it instead of learning, gpt2 finds its files there.",
    )
    byte_fallback: bool = Field(
        False, description="chars only: 256 more tokens, so that no character is ever unknown."
    )

    @model_validator(mode="after")
    def _vocab_size_is_for_bpe(self) -> "TokenizerConfig":
        if self.vocab_size is not None and (self.kind != "bpe" or self.folder is not None):
            owner = "a folder's tokenizer" if self.kind == "bpe" else self.kind
            raise ValueError(
                f"vocab_size = {self.vocab_size} is for kind bpe only; {owner} has a size of its own, "
                "so leave the key out"
            )
        return self

    @model_validator(mode="after")
    def _keys_fit_the_kind(self) -> "TokenizerConfig":
        if self.folder is not None and self.kind not in ("bpe", "gpt2"):
            raise ValueError(
                f"folder = {show(self.folder)} is for the kinds bpe and gpt2; {self.kind} reads no files, "
                "so leave the key out"
            )
        if self.byte_fallback and self.kind != "chars":
            raise ValueError(
                f"byte_fallback = true is for kind chars only; {self.kind} knows every character anyway, "
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
    muon_momentum: float = Field(
        0.95, ge=0.0, lt=1.0, description="Muon's averaging rate for the gradient; 0.9 suits short runs."
    )
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

    out_dir: PathText = Field("runs/default", description="The run folder; must be new, or hold no run.")
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
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = Field(
        (), strict=False, description="Where the figures of metrics.jsonl go as well."
    )
    init_from: PathText | None = Field(
        None,
        description="A checkpoint, a GPT-2 folder or a name on the Hugging Face Hub to start from, tokenizer "
        "included; null: random weights.",
    )

    @model_validator(mode="after")
    def _micro_batches_fill_the_batch(self) -> "TrainConfig":
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size = {self.batch_size} must be a multiple of micro_batch_size = "
                f"{self.micro_batch_size}"
            )
        return self

    def sequences_per_pass(self, ranks: int) -> int:
        """Sequences that each of `ranks` processes takes through the model at once.

        Raises UserError where they cannot share a batch evenly.

        >>> TrainConfig(batch_size=12).sequences_per_pass(ranks=3)
        4
        """
        if self.batch_size % (ranks * (self.micro_batch_size or 1)):
            of = f"micro_batch_size = {self.micro_batch_size} times " if self.micro_batch_size else ""
            raise UserError(
                f"train.batch_size = {self.batch_size}: needs to be a multiple of {of}{ranks} ranks"
            )
        return self.micro_batch_size or self.batch_size // ranks


class RuntimeConfig(Section):
    """The machine."""

    device: Device = Field("auto", description="What to compute on; auto: CUDA, else MPS, else the CPU.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="Number format of the forward pass; auto: bf16 where the hardware has it."
    )
    compile: bool = Field(False, description="Compile the model with torch.compile.")
    threads: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = Field(
        "auto",
        description="CPU threads of a process; auto: under torchrun, the processes share the cores.",
    )
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="Under torchrun, ddp: every process holds the model; fsdp: every process holds a share.",
    )
    activation_checkpointing: bool = Field(
        False, description="Compute each block again in the backward pass, to keep less in memory."
    )
    rank_timeout_seconds: float = Field(
        600.0,
        gt=0.0,
        le=1e6,
        description="Under torchrun, how long a process waits for the others before the run ends.",
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
    values = {} if path is None else read_yaml(path)
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
    values = config.model_dump(mode="json", exclude_defaults=not complete)
    return yaml.dump(values, Dumper=_Yaml12Dumper, sort_keys=False, allow_unicode=True)


# ----------------------------------------------------------------------------------- what a schema says


S = TypeVar("S", bound=Section)


def validate(schema: type[S], values: Mapping[str, Any], source: str, overridden: Iterable[str] = ()) -> S:
    """`values` as an object of the schema; raises UserError with one line, as `explain` words it."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise UserError(explain(error, schema, source, overridden)) from None


def explain(
    error: ValidationError, schema: type[Section], source: str, overridden: Iterable[str] = ()
) -> str:
    """The first problem of a ValidationError in one line: source, key, value, and what is needed.

    `overridden` are the dotted keys that came from the command line rather than from `source`.
    """
    details = error.errors(include_url=False)
    first = details[0]
    location = first["loc"]
    too_short = first["type"] == "missing" and isinstance(location[-1], int)  # the problem is the list's
    key, node = _find(schema, location[:-1] if too_short else location)
    others = len({_find(schema, detail["loc"])[0].partition("[")[0] for detail in details}) - 1
    more = f" (and {others} more)" if others else ""
    name = f"{source}: {key}" if key else source
    if key.partition("[")[0] in set(overridden):
        name = option(key)
    if first["type"] == "value_error":  # a rule between keys: its message names them
        return f"{name}: {first['ctx']['error']}{more}"
    if first["type"] == "extra_forbidden":
        return f"{source}: unknown key {_unknown(key, schema)}{more}"
    if first["type"] == "missing" and not too_short:
        return f"{name} is missing{more}"
    quote = isinstance(first["input"], int | float) and accepts_text(node)
    hint = " (quote it to make it a text)" if quote else ""
    return f"{name} = {show(first['input'])}: needs {needs(node)}{hint}{more}"


def option(key: str) -> str:
    """How a key is written on the command line.

    >>> option("train.max_steps")
    '--train.max-steps'
    """
    return "--" + key.replace("_", "-")


@cache
def keys(schema: type[Section]) -> dict[str, dict[str, Any]]:
    """Every dotted key of a schema, and its JSON schema.

    >>> list(keys(Config))[:3]
    ['model.n_layer', 'model.n_head', 'model.n_embd']
    >>> keys(Config)["train.max_steps"]["minimum"]
    1
    """
    root = _json_schema(schema)
    found: dict[str, dict[str, Any]] = {}
    for name, node in root["properties"].items():
        section = _resolve(node, root).get("properties")
        found |= {f"{name}.{key}": inner for key, inner in section.items()} if section else {name: node}
    return found


def needs(node: Mapping[str, Any]) -> str:
    """What a key takes, in words, from its JSON schema.

    >>> needs(keys(Config)["train.micro_batch_size"])
    'a whole number of at least 1 or null'
    >>> needs(keys(Config)["runtime.device"])
    'auto, cpu, cuda, mps or a text such as cuda:0'
    >>> needs(keys(Config)["data.corpus"])
    'a path or a list of paths'
    """
    *first, last = _alternatives(node)
    return f"{', '.join(first)} or {last}" if first else last


def accepts_text(node: Mapping[str, Any]) -> bool:
    """Whether a key takes any text, so that a word like 123 on the command line stays a word."""
    free_text = node.get("type") == "string" and "enum" not in node and "const" not in node
    return (
        free_text
        or any(map(accepts_text, node.get("anyOf", ())))
        or ("items" in node and accepts_text(node["items"]))
    )


def accepts_list(node: Mapping[str, Any]) -> bool:
    """Whether a key takes a list, so that it is followed by several words on the command line."""
    return node.get("type") == "array" or any(map(accepts_list, node.get("anyOf", ())))


def accepts_one(node: Mapping[str, Any]) -> bool:
    """Whether a key takes a single value rather than only a list."""
    if "anyOf" in node:
        return any(accepts_one(member) for member in node["anyOf"] if member.get("type") != "null")
    return node.get("type") != "array"


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the known name nearest to a mistyped one, or nothing.

    >>> did_you_mean("train.max_step", ["train.max_steps", "train.seed"])
    '; did you mean train.max_steps?'
    >>> did_you_mean("train.lr", ["train.max_steps", "optim.lr"])
    '; did you mean optim.lr?'
    """
    names = {name.rpartition(".")[2]: name for name in known}
    last = given.rpartition(".")[2]
    for close in (
        difflib.get_close_matches(last, names, n=1, cutoff=1.0),  # the right key in the wrong section
        difflib.get_close_matches(given, names.values(), n=1, cutoff=0.6),
        difflib.get_close_matches(last, names, n=1, cutoff=0.75),
    ):
        if close:
            return f"; did you mean {names.get(close[0], close[0])}?"
    return ""


def show(value: Any) -> str:
    """A value in an error message: the constants as YAML has them, on one line, and shortened.

    >>> show(None), show(True), show(["x" * 100, 2.5])
    ('null', 'true', "['xxxxxxxxxxxxxxxxxxxxxxxxxxx...xxxxxxxxxxxxxxxxxxxxxxxxxxxx', 2.5]")
    """
    return json.dumps(value) if value is None or isinstance(value, bool) else _short.repr(value)


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60
_short.maxlevel = 2  # aliases can make a small file a value without end


def _unknown(key: str, schema: type[Section]) -> str:
    """A key that the schema lacks, and what may be meant by it."""
    if key in keys(schema):  # written as on the command line
        section, _, name = key.partition(".")
        return f"{key}; write `{section}: {{{name}: ...}}`"
    sections = [] if "." in key else schema.model_fields
    shown = key if re.fullmatch(r"[\w.-]{1,60}", key) else show(key)
    return shown + did_you_mean(key, [*keys(schema), *sections])


@cache
def _json_schema(schema: type[Section]) -> dict[str, Any]:
    return schema.model_json_schema()


def _resolve(node: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """The node itself, or the definition in the root that it refers to."""
    return root["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node


def _find(schema: type[Section], location: Iterable[int | str]) -> tuple[str, dict[str, Any]]:
    """The key at a pydantic error location, without the union members that pydantic puts behind it, and
    the key's JSON schema."""
    key, node = "", _json_schema(schema)
    for part in location:
        if isinstance(part, int) and node.get("type") == "array":
            first = node.get("prefixItems", [])
            key, node = f"{key}[{part}]", first[part] if part < len(first) else node.get("items", {})
        elif node.get("type") == "object":
            inner = node.get("properties", {}).get(part, node.get("additionalProperties"))
            inner = inner if isinstance(inner, dict) else {}  # true or false: any keys, or no others
            key, node = f"{key}.{part}" if key else str(part), inner
        else:
            break
        node = _resolve(node, _json_schema(schema))
    return key, node


_NOUNS = {"integer": "whole number", "number": "number", "string": "text"}
_BOUNDS = {
    "minimum": "of at least",
    "exclusiveMinimum": "above",
    "maximum": "of at most",
    "exclusiveMaximum": "below",
}


def _alternatives(node: Mapping[str, Any]) -> list[str]:
    """The kinds of value that a JSON schema node allows, in words."""
    if "anyOf" in node:
        return [words for member in node["anyOf"] for words in _alternatives(member)]
    if "const" in node or "enum" in node:
        values = node.get("enum") or [node["const"]]
        return [value if isinstance(value, str) else show(value) for value in values]
    match node.get("type"):
        case "null":
            return ["null"]
        case "boolean":
            return ["true", "false"]
        case "array":
            items = node.get("prefixItems") or [node.get("items", {})]
            count = f"{len(items)} " if "prefixItems" in node else ""
            return [f"a list of {count}{_kind(items[0], plural=True)}"]
        case "object":
            return ["keys of its own"]
    return [_kind(node) if node.get("type") in _NOUNS else "another value"]


def _kind(node: Mapping[str, Any], plural: bool = False) -> str:
    """Number or text, and its limits, in words."""
    if node.get("type") not in _NOUNS or "enum" in node:
        return needs(node)
    noun = node.get("format") or _NOUNS[node["type"]]
    words = noun + "s" if plural else "a " + noun
    bounds = [f"{text} {node[bound]:,}" for bound, text in _BOUNDS.items() if bound in node]
    if bounds:
        return f"{words} {' and '.join(bounds)}"
    if "examples" in node:
        return f"{words} such as {node['examples'][0]}"
    return f"{words} matching {node['pattern']}" if "pattern" in node and "format" not in node else words


# ----------------------------------------------------------------------------------------- reading YAML


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
        raise UserError(
            f"{path}: no such config file; gptmini configs lists those that come with gptmini"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        values = parse_yaml(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = ": ".join(filter(None, (error.context, error.problem)))
        raise UserError(f"{path}: {place}{' '.join(problem.split())[:300]}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        found = "is empty" if values is None else f"holds a {type(values).__name__}"
        raise UserError(f"{path}: {found}, but a config is a mapping of sections such as `model:`")
    return values


def parse_yaml(text: str) -> Any:
    """YAML text by the 1.2 rules for numbers and words; raises yaml.YAMLError where it is none.

    >>> parse_yaml("{lr: 3e-4, corpus: no, when: 1:30, bias: true, steps: 1_000}")
    {'lr': 0.0003, 'corpus': 'no', 'when': '1:30', 'bias': True, 'steps': '1_000'}
    """
    try:
        return yaml.load(text, _Yaml12Loader)  # a SafeLoader: it builds plain values only
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    except (ValueError, OverflowError):  # PyYAML's, for an escape such as \UFFFFFFFF
        raise yaml.YAMLError("holds an escape that is no character") from None


class _Yaml12Loader(yaml.SafeLoader):
    """PyYAML's safe loader with YAML 1.2's core schema in place of 1.1's surprises."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  # PyYAML's name for the rules, which start from none here

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]  # PyYAML's stubs leave it out
        if getattr(event, "tag", None):
            raise yaml.composer.ComposerError(
                None, None, f"tags such as {event.tag} are not used in a config", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be a word", key_node.start_mark
                )
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {show(key_node.value)} is given twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return {str(key): value for key, value in super().construct_mapping(node, deep).items()}


class _Yaml12Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, quoting what either version of YAML would not read as text."""


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
    for _class in (_Yaml12Loader, _Yaml12Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    if len(text) > 20:  # so that counts, and products of a few of them, are numbers that floats can hold
        raise yaml.constructor.ConstructorError(None, None, "number is too long", node.start_mark)
    return int(text)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """In double quotes where a text holds a line end that other styles would read back as another one."""
    style = '"' if re.search("[\x85\u2028\u2029]", text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Yaml12Dumper.add_representer(str, _represent_text)
_Yaml12Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Yaml12Loader.add_constructor(
    "tag:yaml.org,2002:float",
    lambda loader, node: float(re.sub(r"(?i)\.(inf|nan)", r"\1", str(node.value))),
)
