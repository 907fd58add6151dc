"""The command line: gptmini train | generate | prepare | plan | evaluate.

Each command's options are the keys of a schema in which every key has its type, default, rule and sentence.
A word on the command line is read as the YAML file would read it and judged by the same schema, so both
fail with the same one-line messages; tyro renders `--help` from the schema. Nothing here imports torch
before a command starts to work.
"""

import contextlib
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

import yaml
from pydantic import Field

from gptmini import __version__
from gptmini.config import Config, Device, PathText, load_config
from gptmini.errors import DamagedError, DivergedError, InUseError, Stopped, UserError
from gptmini.generation.sampling import SamplingOptions
from gptmini.schema import (
    S,
    Section,
    accepts_list,
    accepts_one,
    accepts_text,
    describe_type,
    did_you_mean,
    flag_name,
    flatten_schema,
    format_value,
    validate,
)
from gptmini.yaml_io import parse_yaml

if TYPE_CHECKING:
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo


USAGE = f"""gptmini {__version__}: train GPT-2-style language models on your own text

gptmini train CONFIG.yaml [--section.key VALUE ...] [--resume] [--quiet]
gptmini train --data.corpus PATH [--minutes N] [--section.key VALUE ...] [--resume] [--quiet]
gptmini generate CHECKPOINT [--prompt TEXT] [--max-new-tokens N] [--temperature X] ...
gptmini prepare [CONFIG.yaml] [--section.key VALUE ...] [--stats] | --list
gptmini plan [CONFIG.yaml] [--section.key VALUE ...] [--world-size N] [--measure]
gptmini evaluate CHECKPOINT [--corpus PATH ...]
gptmini export CHECKPOINT --format gguf [--numbers float32 | float16 | q8_0] [--output FILE]
gptmini import-nanogpt CKPT.pt OUT
gptmini report RUN [RUN ...] [--output FILE.html]
gptmini configs [NAME]
gptmini completion bash | zsh | fish

gptmini COMMAND --help lists all options of a command; gptmini train CONFIG.yaml --help shows the
values of that file as defaults. CHECKPOINT is a run folder (its best checkpoint), one step's folder
or any Hugging Face GPT-2 directory. configs lists the configs to start from, or prints one, to save
and to change: gptmini configs my_text > mine.yaml. completion prints a script that teaches your
shell the commands and options; for bash: eval "$(gptmini completion bash)"."""


class TrainFlags(Section):
    """How `gptmini train` goes about it, whatever the config."""

    minutes: float | None = Field(
        None, gt=0, le=100_000, description="Time for a run without a CONFIG.yaml; null: 5 minutes."
    )
    resume: bool = Field(False, description="Go on with the run in train.out_dir, if it has a checkpoint.")
    quiet: bool = Field(False, description="Show nothing but errors.")


class TrainOptions(TrainFlags, Config):
    """Train a GPT. Every key can stand in CONFIG.yaml; one given here comes before it.

    Without a CONFIG.yaml, sizes and steps are chosen for the text, this machine and the minutes.
    """


class PrepareFlags(Section):
    """What else `gptmini prepare` tells."""

    list: bool = Field(False, description="Show the named corpora with size and licence, and do no more.")
    stats: bool = Field(
        False,
        description="Documents, tokens, bytes per token (and GPT-2's), longest document, repeated share.",
    )


class PrepareOptions(PrepareFlags, Config):
    """Turn the corpus of a config into tokens, as training would, and tell what was found."""


class PlanFlags(Section):
    """What `gptmini plan` is to reckon with."""

    world_size: int = Field(1, ge=1, le=1_000_000, description="Processes that torchrun starts, in all.")
    tokens_per_second: float | None = Field(
        None, gt=0.0, description="The speed of all processes together, to tell the hours by."
    )
    measure: bool = Field(False, description="Try some steps on this machine, for their speed and memory.")


class PlanOptions(PlanFlags, Config):
    """Tell what training by a config takes, before it starts: memory, operations, hours."""


class GenerateOptions(SamplingOptions):
    """Continue a prompt with the model of a checkpoint."""

    prompt: str | None = Field(None, description="Text to continue; - reads it from standard input.")
    prompt_file: PathText | None = Field(
        None, description="A file that holds the prompt; the line break at its end is not part of it."
    )
    max_new_tokens: int = Field(200, ge=0, description="Tokens to write at most.")
    num_samples: int = Field(1, ge=1, description="How many texts to write.")
    stop: tuple[str, ...] = Field((), strict=False, description="End a text before any of these strings.")
    truncate_prompt: Literal["left"] | None = Field(
        None, description="left: of a prompt longer than the model's context, read the end; null: refuse it."
    )
    seed: int | None = Field(None, ge=0, lt=2**63, description="The same seed gives the same text.")
    interactive: bool = Field(False, description="A terminal session: type text, watch the model go on.")
    device: Device = Field("auto", description="What to compute on; auto: CUDA, else MPS, else the CPU.")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="Number format of the weights.")
    quantize: Literal["int8"] | None = Field(
        None, description="int8: weights rounded to a quarter of their bytes, for the CPU."
    )


class EvaluateOptions(Section):
    """Measure how well a checkpoint predicts a text: by default the validation split of its own run."""

    corpus: tuple[PathText, ...] | None = Field(
        None, strict=False, description="Another text: names, files, folders or globs."
    )
    memorization: bool = Field(
        False, description="Tell how much of samples and validation text stands in the training text."
    )
    batch_size: int = Field(32, ge=1, description="Sequences per forward pass.")
    device: Device = Field("auto", description="What to compute on; auto: CUDA, else MPS, else the CPU.")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="Number format of the weights.")
    quantize: Literal["int8"] | None = Field(
        None, description="int8: weights rounded as generate does it; also tells what that costs in loss."
    )


class ExportOptions(Section):
    """Write the model of a checkpoint as one file for other programs."""

    format: Literal["gguf"] = Field("gguf", description="gguf: for llama.cpp, ollama and their like.")
    numbers: Literal["float32", "float16", "q8_0"] = Field(
        "float16", description="Number format of the weights; q8_0 takes about a quarter of float32."
    )
    output: PathText | None = Field(
        None, description="The file to write; null: NAME-NUMBERS.gguf here, with the checkpoint's name."
    )


class ImportNanogptOptions(Section):
    """Turn a checkpoint of nanoGPT into a Hugging Face GPT-2 directory."""


class ReportOptions(Section):
    """Show runs on one HTML page: curves, samples, surprising texts, config."""

    output: PathText = Field("report.html", description="The file to write; replaced where it exists.")
    device: Device = Field("auto", description="What to compute on; auto: CUDA, else MPS, else the CPU.")


class ConfigsOptions(Section):
    """List the configs to start from, or print the one called NAME."""


class CompletionOptions(Section):
    """Print a script that teaches your shell the commands and options."""


_SCHEMAS: dict[str, type[Section]] = {
    "train": TrainOptions,
    "generate": GenerateOptions,
    "prepare": PrepareOptions,
    "plan": PlanOptions,
    "evaluate": EvaluateOptions,
    "export": ExportOptions,
    "import-nanogpt": ImportNanogptOptions,
    "report": ReportOptions,
    "configs": ConfigsOptions,
    "completion": CompletionOptions,
}
_PLACES = {
    "import-nanogpt": "CKPT.pt OUT",
    "report": "RUN [RUN ...]",
    "configs": "[NAME]",
    "completion": "bash | zsh | fish",
}  # what stands after the other commands is a CHECKPOINT


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. A user's mistake is one line on standard error."""
    sys.stdout = sys.stdout or _nowhere()
    sys.stderr = sys.stderr or _nowhere()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a model may write what the terminal cannot show
    try:
        _run(*(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except (UserError, DivergedError, DamagedError, InUseError, Stopped) as error:
        return _fail(error, error.exit_code)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as shells report it
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else error, 1)
    except KeyboardInterrupt:
        return 130
    return 0


def _nowhere() -> TextIO:
    """Where text goes if whoever started this process closed its standard output or error."""
    return open(os.devnull, "w", encoding="utf-8")


def _run(command: str = "--help", *words: str) -> None:
    commands = {
        "train": _train,
        "generate": _generate,
        "prepare": _prepare,
        "plan": _plan,
        "evaluate": _evaluate,
        "export": _export,
        "import-nanogpt": _import_nanogpt,
        "report": _report,
        "configs": _configs,
        "completion": _completion,
    }
    if command in ("--help", "-h", "help"):
        print(USAGE)
    elif command == "--version":
        print(f"gptmini {__version__}")
    elif command not in commands:
        raise UserError(f"unknown command {command}{did_you_mean(command, commands)}; see gptmini --help")
    elif "--help" in words or "-h" in words:
        _help(command, [word for word in words if word not in ("--help", "-h")])
    else:
        commands[command](words)


def _fail(error: object, exit_code: int) -> int:
    """One line, whatever is in it."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(error))
    if not ("TORCHELASTIC_RUN_ID" in os.environ and _already_reported(line)):
        print(f"gptmini: {line}", file=sys.stderr, flush=True)
    return exit_code


def _already_reported(line: str) -> bool:
    from gptmini.distributed.failure import already_reported

    return already_reported(line)


# ------------------------------------------------------------------------------------------------ commands


def _train(words: Sequence[str]) -> None:
    started = time.monotonic()
    path, overrides = _config_words("train", words)
    switches = pop_flags(TrainFlags, overrides)
    config = load_config(path, overrides)
    if path is not None and switches.minutes is not None:
        raise UserError(
            f"--minutes is for runs without a CONFIG.yaml: in {path}, train.max_steps says how long"
        )
    from_weights = config.train.init_from is not None  # which have a size of their own
    if from_weights and switches.minutes is not None:
        raise UserError("--minutes is for new weights: with train.init_from, train.max_steps says how long")
    with _ctrl_c_ends_at_once():
        if path is None and not from_weights:
            if int(os.environ.get("WORLD_SIZE", 1)) > 1:
                raise UserError("several processes need a CONFIG.yaml: each would choose its own sizes")
            from gptmini.planning.autoconfig import choose_config

            config = choose_config(
                overrides, switches.minutes, resume=switches.resume, quiet=switches.quiet, started=started
            )
        from gptmini.training.trainer import train

        train(config, resume=switches.resume, quiet=switches.quiet)


@contextlib.contextmanager
def _ctrl_c_ends_at_once() -> Iterator[None]:
    """Until training catches it, Ctrl-C ends the process as SIGTERM does: a KeyboardInterrupt may get lost in
    an import, and no file needs one, as each is written whole or not at all."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _prepare(words: Sequence[str]) -> None:
    path, overrides = _config_words("prepare", words)
    reports = pop_flags(PrepareFlags, overrides)
    if reports.list:
        from gptmini.data.datasets import list_named

        print(list_named())
        return
    config = load_config(path, overrides)
    from gptmini.data.prepare import prepare

    data = prepare(config.data, config.tokenizer, config.model.context_length)
    print(yaml.safe_dump(data.meta.model_dump(mode="json"), sort_keys=False), end="")
    if reports.stats:
        from gptmini.data.corpus import open_corpus
        from gptmini.evaluation.corpus_statistics import describe

        corpus = open_corpus(config.data.corpus, config.data.text_field, config.data.errors)
        figures = describe(corpus, data)._asdict()
        figures = {name: round(n, 4) if isinstance(n, float) else n for name, n in figures.items()}
        print(yaml.safe_dump({"stats": figures}, sort_keys=False), end="")


def _plan(words: Sequence[str]) -> None:
    path, overrides = _config_words("plan", words)
    outlook = pop_flags(PlanFlags, overrides)
    config = load_config(path, overrides)
    if outlook.measure and (outlook.world_size > 1 or outlook.tokens_per_second is not None):
        other = "--world-size" if outlook.world_size > 1 else "--tokens-per-second"
        raise UserError(f"--measure tries one process on this machine, so it does not go with {other}")
    from gptmini.planning.table import describe

    for line in describe(config, outlook.world_size, outlook.tokens_per_second, measure=outlook.measure):
        print(line, flush=True)


def _generate(words: Sequence[str]) -> None:
    checkpoint, options = _checkpoint_words("generate", words, GenerateOptions)
    weights = _weights(options)
    prompt = _read_prompt(options)
    from gptmini.checkpoint.store import load_model
    from gptmini.generation.cpu_linear import optimize_for_cpu
    from gptmini.generation.repl import Session
    from gptmini.generation.streaming import generate_text, stream
    from gptmini.training.runtime import find_device

    model, tokenizer = load_model(checkpoint, str(find_device(options.device)))
    if tokenizer is None:
        raise UserError(f"{checkpoint}: holds no tokenizer, so there are no texts to read or write with it")
    model = optimize_for_cpu(model, weights)
    fields = options.model_dump(include={"max_new_tokens", "stop", "seed", *SamplingOptions.model_fields})
    if options.interactive:
        Session(model, tokenizer, prompt, **fields).run()
        return
    fields["truncate_prompt"] = options.truncate_prompt == "left"
    if options.num_samples == 1:
        pieces = stream(model, tokenizer, prompt, **fields)
        print(prompt + next(pieces, ""), end="", flush=True)  # nothing is shown of a prompt that is refused
        for piece in pieces:
            print(piece, end="", flush=True)
        print()
    else:
        for text in generate_text(model, tokenizer, prompt, num_samples=options.num_samples, **fields):
            print(text, flush=True)
            print("-" * 80)


def _read_prompt(options: GenerateOptions) -> str:
    if options.prompt is not None and options.prompt_file is not None:
        raise UserError("--prompt and --prompt-file were both given: leave one out")
    if options.prompt_file is None and options.prompt != "-":
        return options.prompt or ""
    source = options.prompt_file or "standard input"
    try:
        data = Path(options.prompt_file).read_bytes() if options.prompt_file else sys.stdin.buffer.read()
        return data.decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{source}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise UserError(f"{source}: cannot be read: {error.strerror}") from None


def _evaluate(words: Sequence[str]) -> None:
    checkpoint, options = _checkpoint_words("evaluate", words, EvaluateOptions)
    precision = _weights(options)
    from gptmini.evaluation.summary import evaluate_checkpoint

    for line in evaluate_checkpoint(
        checkpoint,
        options.corpus,
        memorization=options.memorization,
        batch_size=options.batch_size,
        device=options.device,
        precision=precision,
    ):
        print(line, flush=True)


def _export(words: Sequence[str]) -> None:
    checkpoint, options = _checkpoint_words("export", words, ExportOptions)
    from gptmini.checkpoint.gguf import export_gguf
    from gptmini.checkpoint.store import load_model

    model, tokenizer = load_model(checkpoint)
    if tokenizer is None:
        raise UserError(f"{checkpoint}: holds no tokenizer, and {options.format} needs one")
    output = options.output or f"{Path(checkpoint).resolve().name}-{options.numbers}.{options.format}"
    print(export_gguf(Path(output), model, tokenizer, options.numbers))


def _import_nanogpt(words: Sequence[str]) -> None:
    places, _ = read_options(words, {})
    if len(places) != 2:
        raise UserError(f"gptmini import-nanogpt takes CKPT.pt and OUT, and {len(places)} words were given")
    from gptmini.checkpoint.gpt2_directory import save
    from gptmini.checkpoint.nanogpt import GPT2_VOCAB_SIZE, import_nanogpt
    from gptmini.data.tokenizers import Tokenizer, load_gpt2

    imported = import_nanogpt(Path(places[0]))
    tokenizer: Tokenizer | None = None
    lines = [
        "nanoGPT computes the exact GELU and GPT-2 its tanh form: on random tokens the logits differ by "
        f"{imported.largest_difference:.1e} at most and {imported.mean_difference:.1e} on average, where a "
        f"logit's standard deviation is {imported.typical_logit:.1e}"
    ]
    if imported.model.config.vocab_size == GPT2_VOCAB_SIZE:
        try:
            tokenizer = load_gpt2()
        except UserError as error:
            lines.append(f"no tokenizer written: {error}")
    else:
        lines.append("no tokenizer written: a nanoGPT checkpoint holds none, and this one's is not GPT-2's")
    save(places[1], imported.model, tokenizer)
    print("\n".join([f"{places[1]}: written", *lines]))


def _weights(options: GenerateOptions | EvaluateOptions) -> Literal["fp32", "bf16", "int8"]:
    if options.quantize and options.precision != "fp32":
        raise UserError(
            f"--quantize {options.quantize} and --precision {options.precision}: give one of them"
        )
    return options.quantize or options.precision


def _report(words: Sequence[str]) -> None:
    places, values = read_options(words, flatten_schema(ReportOptions))
    options = validate(ReportOptions, values, "command line", values)
    if not places:
        raise UserError("gptmini report takes one or more run folders, and none was given")
    from gptmini.report.page import write_report

    notes = write_report(places, Path(options.output), options.device)
    print("\n".join([f"{options.output}: written", *notes]))


def _configs(words: Sequence[str]) -> None:
    package = Path(__file__).parent.parent
    inside, beside = package / "configs", package.parent / "configs"
    folder = inside if inside.is_dir() else beside  # in an installed package, in a checkout
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.yaml"))}
    if len(words) > 1:
        raise UserError(f"gptmini configs takes one NAME, not {len(words)}: {' '.join(words)}")
    if words and words[0] not in texts:
        raise UserError(f"no config is called {words[0]}{did_you_mean(words[0], texts)}; see gptmini configs")
    if words:
        print(texts[words[0]], end="")
        return
    for name, text in texts.items():
        print(f"{name:20} {text.partition('# Purpose:')[2].partition(chr(10))[0].strip()}")


# ------------------------------------------------------------------------------------------------ words


def _config_words(command: str, words: Sequence[str]) -> tuple[str | None, dict[str, Any]]:
    """A config's path, if there is one, and the keys given after it."""
    places, overrides = read_options(words, flatten_schema(_SCHEMAS[command]))
    if len(places) > 1:
        raise UserError(f"gptmini {command} takes one CONFIG.yaml, not {len(places)}: {' '.join(places)}")
    return places[0] if places else None, overrides


def pop_flags(schema: type[S], overrides: dict[str, Any]) -> S:
    """Take a command's own switches out of the options; the rest are keys of the config."""
    given = {name: overrides.pop(name) for name in flatten_schema(schema) if name in overrides}
    return validate(schema, given, "command line", given)


def _checkpoint_words(command: str, words: Sequence[str], schema: type[S]) -> tuple[str, S]:
    """The one CHECKPOINT and the options, as an object of the schema."""
    places, values = read_options(words, flatten_schema(schema))
    if len(places) != 1:
        raise UserError(f"gptmini {command} takes one CHECKPOINT, and {len(places)} were given")
    return places[0], validate(schema, values, "command line", values)


def read_options(
    words: Sequence[str], known: Mapping[str, Mapping[str, Any]]
) -> tuple[list[str], dict[str, Any]]:
    """Words apart into those that are no options, and the values of those that are.

    Each value is what the same word would be in a YAML file; a key that takes a list takes all words up to
    the next option, and a switch needs none. Names are never abbreviated.

    >>> read_options(["a.yaml", "--train.max-steps", "20", "--optim.lr=3e-4"], flatten_schema(Config))
    (['a.yaml'], {'train.max_steps': 20, 'optim.lr': 0.0003})
    >>> read_options(["--optim.betas", "0.9", "0.99", "--model.bias", "false"], flatten_schema(Config))
    ([], {'optim.betas': [0.9, 0.99], 'model.bias': False})
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
            raise UserError(f"unknown option {name}{did_you_mean(name, map(flag_name, known))}")
        if key in values:
            raise UserError(f"{flag_name(key)} is given twice")
        given = [value] if equals else _take_values(rest, key, known[key])
        if not given:
            raise UserError(f"{name} needs a value: {describe_type(known[key])}")
        read = [_read(value, known[key]) for value in given]
        alone = len(read) == 1 and (read[0] is None or isinstance(read[0], list) or accepts_one(known[key]))
        values[key] = read[0] if alone else read
    return places, values


def _take_values(rest: list[str], key: str, node: Mapping[str, Any]) -> list[str]:
    """Take from the front of `rest` the values of an option that was just read."""
    if node.get("type") == "boolean" and "." not in key:  # a switch, such as --resume
        return [rest.pop(0)] if rest and rest[0] in ("true", "false") else ["true"]
    taken: list[str] = []
    while rest and not rest[0].startswith("--") and (not taken or accepts_list(node)):
        taken.append(rest.pop(0))
    return taken


def _read(word: str, node: Mapping[str, Any]) -> Any:
    """A word as YAML reads it; where any text is welcome it stays text."""
    may_be_null = any(member.get("type") == "null" for member in node.get("anyOf", ()))
    if may_be_null and word == "null":
        return None
    if accepts_text(node):
        return word
    try:
        return parse_yaml(word)
    except yaml.YAMLError:
        return word


# ------------------------------------------------------------------------------------- help, by tyro


def _help(command: str, words: Sequence[str]) -> None:
    """Print every option of a command with its type, sentence and default: the file's, where one is given."""
    if os.environ.get("NO_COLOR"):
        os.environ["PYTHON_TYRO_ANSI_CODES"] = "False"  # tyro does not know the former
    import tyro

    schema, place = _SCHEMAS[command], _PLACES.get(command, "CHECKPOINT")
    defaults = schema()
    if isinstance(defaults, Config):
        path, overrides = _config_words(command, words)
        config = load_config(path, {key: value for key, value in overrides.items() if "." in key})
        defaults, place = defaults.model_copy(update=dict(config)), "[CONFIG.yaml]"
    with contextlib.suppress(SystemExit):
        tyro.cli(
            schema,
            default=defaults,
            args=["--help"],
            prog=f"gptmini {command} {place}",
            description=schema.__doc__,
            config=(tyro.conf.FlagConversionOff,),
            registry=_yaml_words(),
        )


def _completion(words: Sequence[str]) -> None:
    """Print the script that completes commands, options and choices in a shell."""
    if len(words) != 1 or words[0] not in ("bash", "zsh", "fish"):
        raise UserError(f"gptmini completion takes one of bash, zsh or fish, not {' '.join(words) or 'none'}")
    import tyro

    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as script:
        tyro.cli(
            tyro.extras.subcommand_type_from_defaults({name: schema() for name, schema in _SCHEMAS.items()}),
            args=["--tyro-write-completion", words[0], "-"],
            prog="gptmini",
            config=(tyro.conf.FlagConversionOff, tyro.conf.OmitSubcommandPrefixes),
            registry=_yaml_words(),
        )
    # Where tyro knows no completion, bash completes file names, such as CONFIG.yaml.
    print(script.getvalue().replace("complete -F", "complete -o default -F"), end="")


def _yaml_words() -> "ConstructorRegistry":
    """Rules by which tyro spells null, true and false as YAML does."""
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec

    registry = ConstructorRegistry()

    @registry.primitive_rule
    def rule(info: "PrimitiveTypeInfo") -> "PrimitiveConstructorSpec[Any] | None":
        if info.type not in (bool, type(None)):
            return None
        words = ("true", "false") if info.type is bool else ("null",)
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="|".join(words),
            instance_from_str=lambda given: parse_yaml(given[0]),
            is_instance=lambda value: isinstance(value, info.type),
            str_from_instance=lambda value: [format_value(value)],
            choices=words,
        )

    return registry
