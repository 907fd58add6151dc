"""The command line: gptmini train | generate | prepare | evaluate.

Each command's options are the keys of a schema in which every key has its type, default, rule and sentence.
A word on the command line is read as the YAML file would read it and judged by the same schema, so both
fail with the same one-line messages; tyro renders `--help` from the schema. Nothing here imports torch
before a command starts to work.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from gptmini import __version__
from gptmini.config import (
    Config,
    Device,
    PathText,
    Section,
    accepts_list,
    accepts_one,
    accepts_text,
    did_you_mean,
    keys,
    load_config,
    option,
    parse_yaml,
    validate,
)
from gptmini.errors import DamagedError, DivergedError, InUseError, Stopped, UserError
from gptmini.sampling import SamplingOptions

USAGE = f"""gptmini {__version__}: train GPT-2-style language models on your own text

gptmini train [CONFIG.yaml] [--section.key VALUE ...] [--resume] [--quiet]
gptmini generate CHECKPOINT [--prompt TEXT] [--max-new-tokens N] [--temperature X] ...
gptmini prepare [CONFIG.yaml] [--section.key VALUE ...]
gptmini evaluate CHECKPOINT [--corpus PATH ...]

gptmini COMMAND --help lists all options of a command; gptmini train CONFIG.yaml --help shows the
values of that file as defaults. CHECKPOINT is a run folder (its best checkpoint), one step's folder
or any Hugging Face GPT-2 directory."""


class TrainOptions(Config):
    """Train a GPT. Every key can stand in CONFIG.yaml; one given here comes before it."""

    resume: bool = Field(False, description="Go on with the run in train.out_dir, if it has a checkpoint.")
    quiet: bool = Field(False, description="Show nothing but errors.")


class GenerateOptions(SamplingOptions):
    """Continue a prompt with the model of a checkpoint."""

    prompt: str | None = Field(None, description="Text to continue; - reads it from standard input.")
    prompt_file: PathText | None = Field(None, description="A file that holds the prompt.")
    max_new_tokens: int = Field(200, ge=0, description="Tokens to write at most.")
    num_samples: int = Field(1, ge=1, description="How many texts to write.")
    stop: tuple[str, ...] = Field((), strict=False, description="End a text before any of these strings.")
    truncate_prompt: bool = Field(
        False, description="Read only the end of a prompt that is longer than the model's context."
    )
    seed: int | None = Field(None, ge=0, description="The same seed gives the same text.")
    device: Device = Field("auto", description="What to compute on; auto: CUDA, else MPS, else the CPU.")


class EvaluateOptions(Section):
    """Measure how well a checkpoint predicts a text: by default the validation split of its own run."""

    corpus: tuple[PathText, ...] | None = Field(
        None, strict=False, description="Another text: names, files, folders or globs."
    )
    batch_size: int = Field(32, ge=1, description="Sequences per forward pass.")
    device: Device = Field("auto", description="What to compute on; auto: CUDA, else MPS, else the CPU.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. A user's mistake is one line on standard error."""
    command, *words = [*(sys.argv[1:] if argv is None else argv)] or ["--help"]
    commands = {"train": _train, "generate": _generate, "prepare": _prepare, "evaluate": _evaluate}
    try:
        if command in ("--help", "-h", "help"):
            print(USAGE)
        elif command == "--version":
            print(f"gptmini {__version__}")
        elif command in commands:
            commands[command](words)
        else:
            raise UserError(f"unknown command {command}{did_you_mean(command, commands)}; see gptmini --help")
    except (UserError, DivergedError, DamagedError, InUseError, Stopped) as error:
        return _fail(error, error.exit_code)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else error, 1)
    except KeyboardInterrupt:
        return 130
    return 0


def _fail(error: object, exit_code: int) -> int:
    """One line, whatever is in it."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(error))
    print(f"gptmini: {line}", file=sys.stderr)
    return exit_code


# ------------------------------------------------------------------------------------------------ commands


def _train(words: list[str]) -> None:
    path, overrides = _config_words(words, "train", TrainOptions)
    switches = {name: bool(overrides.pop(name, False)) for name in ("resume", "quiet")}
    config = load_config(path, overrides)
    from gptmini.training.trainer import train

    train(config, **switches)


def _prepare(words: list[str]) -> None:
    config = load_config(*_config_words(words, "prepare", Config))
    from gptmini.data.token_file import prepare

    data = prepare(config.data, config.tokenizer, config.model.context_length)
    print(yaml.safe_dump(data.meta.model_dump(mode="json"), sort_keys=False), end="")


def _generate(words: list[str]) -> None:
    checkpoint, options = _checkpoint_words(words, "generate", GenerateOptions)
    prompt = _read_prompt(options)
    from gptmini.checkpoint.store import load
    from gptmini.generate import generate_text, stream
    from gptmini.training.runtime import find_device

    model, tokenizer = load(checkpoint, str(find_device(options.device)))
    if tokenizer is None:
        raise UserError(f"{checkpoint}: holds no tokenizer, so there are no texts to read or write with it")
    fields = options.model_dump(exclude={"prompt", "prompt_file", "num_samples", "device"})
    if options.num_samples == 1:
        print(prompt, end="", flush=True)
        for piece in stream(model, tokenizer, prompt, **fields):
            print(piece, end="", flush=True)
        print()
    else:
        for text in generate_text(model, tokenizer, prompt, num_samples=options.num_samples, **fields):
            print(text, flush=True)
            print("-" * 80)


def _read_prompt(options: GenerateOptions) -> str:
    if options.prompt_file is None:
        return sys.stdin.read() if options.prompt == "-" else options.prompt or ""
    if options.prompt is not None:
        raise UserError("--prompt and --prompt-file were both given: leave one out")
    try:
        return Path(options.prompt_file).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{options.prompt_file}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise UserError(f"{options.prompt_file}: cannot be read: {error.strerror}") from None


def _evaluate(words: list[str]) -> None:
    checkpoint, options = _checkpoint_words(words, "evaluate", EvaluateOptions)
    from gptmini.checkpoint.store import load
    from gptmini.config import RuntimeConfig
    from gptmini.data.corpus import open_corpus
    from gptmini.data.token_file import count_bytes, encode_corpus, prepare, validation_batches
    from gptmini.training.loss import evaluate
    from gptmini.training.runtime import start_runtime

    runtime = start_runtime(RuntimeConfig(device=options.device, precision="fp32"))
    model, tokenizer = load(checkpoint, str(runtime.device))
    if tokenizer is None:
        raise UserError(f"{checkpoint}: holds no tokenizer, so it cannot read a text")
    length = model.config.context_length
    if options.corpus:
        tokens = encode_corpus(open_corpus(options.corpus), tokenizer)
    else:
        tokens = prepare(_run_config(checkpoint).data, tokenizer, length).val
    batches = validation_batches(tokens, length, options.batch_size)
    result = evaluate(model, batches, lambda targets: count_bytes(tokenizer, targets), runtime)
    print(f"loss           {result.loss:.4f} nats per token")
    print(f"perplexity     {result.perplexity:.2f}")
    print(f"bits per byte  {result.bits_per_byte:.4f}")
    print(f"tokens         {result.tokens:,}")


def _run_config(checkpoint: str) -> Config:
    """The config of the run that a checkpoint, or the run folder itself, belongs to."""
    for folder in (Path(checkpoint), Path(checkpoint).resolve().parent.parent):
        if (folder / "config.yaml").is_file():
            return load_config(folder / "config.yaml")
    raise UserError(f"{checkpoint}: has no config.yaml of a run beside it: say which text by --corpus")


# ------------------------------------------------------------------------------------------------ words


def _config_words(words: list[str], command: str, schema: type[Config]) -> tuple[str | None, dict[str, Any]]:
    """A config's path, if there is one, and the keys given after it."""
    wants_help, words = "--help" in words or "-h" in words, [w for w in words if w not in ("--help", "-h")]
    places, overrides = read_options(words, keys(schema))
    if len(places) > 1:
        raise UserError(f"gptmini {command} takes one CONFIG.yaml, not {len(places)}: {' '.join(places)}")
    path = places[0] if places else None
    if wants_help:
        config = load_config(path, {key: overrides[key] for key in overrides if key in keys(Config)})
        _show_help(schema.model_construct(**dict(config)), f"gptmini {command} [CONFIG.yaml]")
    return path, overrides


def _checkpoint_words(words: list[str], command: str, schema: type[Section]) -> tuple[str, Any]:
    """The one CHECKPOINT and the options, as an object of the schema."""
    if "--help" in words or "-h" in words:
        _show_help(schema(), f"gptmini {command} CHECKPOINT")
    places, values = read_options(words, keys(schema))
    if len(places) != 1:
        raise UserError(f"gptmini {command} takes one CHECKPOINT, and {len(places)} were given")
    return places[0], validate(schema, values, "command line", values)


def read_options(
    words: Sequence[str], known: Mapping[str, Mapping[str, Any]]
) -> tuple[list[str], dict[str, Any]]:
    """Words apart into those that are no options, and the values of those that are.

    Each value is what the same word would be in a YAML file; a key that takes a list takes all words up to
    the next option, and a switch needs none. Names are never abbreviated.

    >>> read_options(["a.yaml", "--train.max-steps", "20", "--optim.lr=3e-4"], keys(Config))
    (['a.yaml'], {'train.max_steps': 20, 'optim.lr': 0.0003})
    """
    places: list[str] = []
    values: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            places.append(word)
            continue
        name, equals, value = word.partition("=")
        key = name[2:].replace("-", "_")
        if key not in known:
            raise UserError(f"unknown option {name}{did_you_mean(name, map(option, known))}")
        node, found = known[key], [value] if equals else []
        if node.get("type") == "boolean" and not found:
            found = [rest.pop(0)] if rest and rest[0].lower() in ("true", "false") else ["true"]
        while rest and not rest[0].startswith("--") and (not found or (accepts_list(node) and not equals)):
            found.append(rest.pop(0))
        if not found:
            raise UserError(f"{name} needs a value")
        read = [_read(value, node) for value in found]
        one_will_do = len(read) == 1 and (read[0] is None or accepts_one(node))
        values[key] = read[0] if one_will_do else read
    return places, values


def _read(word: str, node: Mapping[str, Any]) -> Any:
    """A word as YAML reads it; where any text is welcome it stays text."""
    may_be_null = any(member.get("type") == "null" for member in node.get("anyOf", ()))
    if may_be_null and word in ("null", "None"):
        return None
    if accepts_text(node):
        return word
    try:
        value = parse_yaml(word)
    except yaml.YAMLError:
        return word
    return word if isinstance(value, dict | list) else value


def _show_help(defaults: Section, usage: str) -> None:
    """Print every option with type, default and sentence, and end."""
    import tyro

    tyro.cli(
        type(defaults),
        default=defaults,
        args=["--help"],
        prog=usage,
        description=type(defaults).__doc__,
        config=(tyro.conf.FlagConversionOff,),
    )
