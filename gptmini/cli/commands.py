"""What each command does: call the package that does the work, and return the lines to print.

Imports that bring torch stand inside the functions, so help and config errors do not wait for it.
"""

import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from gptmini.cli.flags import (
    EvaluateOptions,
    ExportOptions,
    GenerateOptions,
    ImportOptions,
    LoadOptions,
    PlanFlags,
    PrepareFlags,
    ReportOptions,
    RunsOptions,
    ServeOptions,
    TrainFlags,
)
from gptmini.cli.options import Command, completion_script
from gptmini.config import load_config
from gptmini.data.file_formats import describe_format
from gptmini.distributed.parent import is_main_rank, torchrun_world_size
from gptmini.errors import MissingPackageError, UserError, path_error
from gptmini.generation.sampling import SamplingOptions
from gptmini.memory import explain_shortage
from gptmini.schema import Section, did_you_mean
from gptmini.terminal import discard_unwritten, guard_streams
from gptmini.yaml_io import dump_yaml


def train(args: list[str], flags: TrainFlags, overrides: dict[str, Any]) -> None:
    """Train a GPT. Every key can stand in CONFIG.yaml; an option overrides it.

    Without a CONFIG.yaml, sizes and steps are chosen for the text, this machine and the minutes.
    """
    started = time.monotonic()
    path, minutes = args[0] if args else None, flags.minutes
    config = load_config(path, overrides)
    # Sizes are chosen where neither a file nor weights to start from say them.
    given = "a CONFIG.yaml" if args else "train.init_from" if config.train.init_from else None
    if minutes is not None and given and not flags.resume:
        raise UserError(f"--minutes is for runs without a size: with {given}, train.max_steps says how long")
    from gptmini.training.signals import exit_at_once

    # A run outlives its terminal. Until training handles signals itself, they end it at once.
    with guard_streams(may_fail=True), exit_at_once():
        if given is None or minutes is not None:
            if torchrun_world_size() > 1:
                raise UserError(
                    "several processes need a CONFIG.yaml, and no --minutes: each would choose its own sizes"
                )
            from gptmini.planning.autoconfig import choose_config

            config = choose_config(
                path, overrides, minutes, resume=flags.resume, quiet=flags.quiet, started=started
            )
        from gptmini.evaluation.last_lines import last_lines
        from gptmini.training.run import train

        result = train(config, resume=flags.resume, quiet=flags.quiet)
        if is_main_rank() and not flags.quiet:
            for line in last_lines(result.run_dir):
                print(line, flush=True)
    discard_unwritten()


def prepare(args: list[str], flags: PrepareFlags, overrides: dict[str, Any]) -> Iterable[str]:
    """Tokenize the corpus of a config, as training would, and print what it holds."""
    if flags.list:
        from gptmini.data.datasets import list_named

        yield list_named()
        return
    config = load_config(args[0] if args else None, overrides)
    from gptmini.data.prepare import prepare

    data = prepare(config.data, config.tokenizer, config.model.context_length)
    yield dump_yaml(data.meta.model_dump(mode="json")).strip()
    if flags.stats:
        from gptmini.data.corpus import open_corpus
        from gptmini.evaluation.corpus_statistics import describe

        corpus = open_corpus(config.data.corpus, config.data.text_field, config.data.errors)
        statistics = describe(corpus, data)
        rounded = {name: round(n, 4) if isinstance(n, float) else n for name, n in statistics.items()}
        yield dump_yaml({"stats": rounded}).strip()


def plan(args: list[str], flags: PlanFlags, overrides: dict[str, Any]) -> Iterable[str]:
    """Estimate the memory, operations and hours of a training run before it starts."""
    config = load_config(args[0] if args else None, overrides)
    if flags.measure and (flags.world_size > 1 or flags.tokens_per_second is not None):
        other = "--world-size" if flags.world_size > 1 else "--tokens-per-second"
        raise UserError(f"--measure runs one process on this machine, so it does not go with {other}")
    from gptmini.planning.table import describe

    return describe(config, flags.world_size, flags.tokens_per_second, measure=flags.measure)


def _precision(options: LoadOptions) -> Literal["fp32", "bf16", "int8"]:
    if options.quantize and options.precision != "fp32":
        raise UserError(
            f"--quantize {options.quantize} and --precision {options.precision}: give one of them"
        )
    return options.quantize or options.precision


def generate(args: list[str], options: GenerateOptions, overrides: dict[str, Any]) -> None:
    """Continue a prompt with the model of a checkpoint."""
    precision = _precision(options)
    if options.interactive and options.prompt == "-":
        raise UserError("--prompt - and --interactive both read standard input: give the prompt as a text")
    if options.interactive and sys.stdin is None:
        raise UserError("--interactive reads what you type, but standard input is closed")
    prompt = _read_prompt(options)
    from gptmini.generation.load import load
    from gptmini.generation.repl import Session
    from gptmini.generation.streaming import generate_text, stream

    # "./" before it, so that a mistyped folder is not taken for a model's name on the Hugging Face Hub.
    model, tokenizer = load(os.path.join(".", args[0]), options.device, precision)
    if tokenizer is None:
        raise UserError(f"{args[0]}: holds no tokenizer, so there are no texts to read or write with it")
    own = {"max_new_tokens", "stop", "seed", "parse_special", "allow_invalid_utf8"}
    keywords = options.model_dump(include=own | SamplingOptions.model_fields.keys())
    if options.interactive:
        Session(model, tokenizer, prompt, **keywords).run()
        return
    keywords["truncate_prompt"] = options.truncate_prompt == "left"
    # One text is printed as it is generated, several one after another.
    if options.num_samples == 1:
        pieces = stream(model, tokenizer, prompt, **keywords)
        print(prompt + next(pieces, ""), end="", flush=True)  # a prompt that is refused is not printed
        for piece in pieces:
            print(piece, end="", flush=True)
        print()
    else:
        for text in generate_text(model, tokenizer, prompt, num_samples=options.num_samples, **keywords):
            print(text, flush=True)
            print("-" * 80)


def _read_prompt(options: GenerateOptions) -> str:
    if options.prompt is not None and options.prompt_file is not None:
        raise UserError("--prompt and --prompt-file were both given: leave one out")
    if options.prompt_file is None and options.prompt != "-":
        return options.prompt or ""
    if options.prompt_file is None and sys.stdin is None:
        raise UserError("--prompt = -: standard input is closed")
    source = options.prompt_file or "standard input"
    try:
        data = Path(options.prompt_file).read_bytes() if options.prompt_file else sys.stdin.buffer.read()
    except OSError as error:
        raise path_error(source, error) from None
    what = describe_format(data[:4096])
    reason = f"seems to be {what}"
    try:
        if what is None or b"\0" not in data:  # UTF-16 and UTF-32 may be UTF-8 as well, with zero bytes
            return data.decode("utf-8-sig").removesuffix("\n")  # without a byte order mark
    except UnicodeDecodeError as error:
        if what is None:
            reason = f"not UTF-8 text (byte {error.start})"
    raise UserError(f"{source}: {reason}")


def evaluate(args: list[str], options: EvaluateOptions, overrides: dict[str, Any]) -> Iterable[str]:
    """Measure how well a checkpoint predicts a text: by default the validation split of its own run.

    With --precision bf16 or --quantize int8, also measure what the rounding costs in loss.
    """
    precision = _precision(options)
    from gptmini.evaluation.summary import evaluate_checkpoint

    with explain_shortage("lower --batch-size"):
        yield from evaluate_checkpoint(
            args[0],
            options.corpus,
            text_field=options.text_field,
            memorization=options.memorization,
            batch_size=options.batch_size,
            device=options.device,
            precision=precision,
        )


def export(args: list[str], options: ExportOptions, overrides: dict[str, Any]) -> Iterable[str]:
    """Write the model of a checkpoint as one file: for other programs, or as a page to play with it."""
    output = options.output or f"{Path(args[0]).resolve().name}-{options.dtype}.{options.format}"
    if options.format == "html":
        from gptmini.web.export import export_html

        return [export_html(Path(output), Path(args[0]), options.dtype)]
    from gptmini.checkpoint.gguf import export_gguf
    from gptmini.checkpoint.store import load_model

    model, tokenizer = load_model(args[0])
    if tokenizer is None:
        raise UserError(f"{args[0]}: holds no tokenizer, and {options.format} needs one")
    return [export_gguf(Path(output), model, tokenizer, options.dtype)]


def import_nanogpt(args: list[str], options: ImportOptions, overrides: dict[str, Any]) -> Iterable[str]:
    """Turn a checkpoint of nanoGPT into a Hugging Face GPT-2 directory."""
    from gptmini.checkpoint.nanogpt import convert_nanogpt

    meta = None if options.meta is None else Path(options.meta)
    return convert_nanogpt(Path(args[0]), Path(args[1]), meta)


def report(args: list[str], options: ReportOptions, overrides: dict[str, Any]) -> Iterable[str]:
    """Show runs on one HTML page: curves, samples, surprising texts, config."""
    from gptmini.report.page import write_report

    notes = write_report(args, Path(options.output), options.device)
    return [f"{options.output}: written", *notes]


def serve(args: list[str], options: ServeOptions, overrides: dict[str, Any]) -> None:
    """Serve a page on which to play with models, look inside them and watch runs; and /v1/completions.

    Without a name, every run under runs/.
    """
    precision = _precision(options)
    try:
        from gptmini.web.catalog import Catalog
        from gptmini.web.server import serve
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "uvicorn"):
            raise
        raise MissingPackageError("gptmini serve", "fastapi uvicorn") from None
    serve(Catalog(args, options.device, precision), options.host, options.port, options.open)


def runs(args: list[str], options: RunsOptions, overrides: dict[str, Any]) -> Iterable[str]:
    """List the runs in FOLDER, runs/ unless given: text, size, best bits per byte, when, disk."""
    from gptmini.web.runs_table import delete_run, list_runs

    folder = Path(args[0] if args else "runs")
    return list_runs(folder) if options.delete is None else delete_run(folder, options.delete, options.yes)


def verify(args: list[str], options: Section, overrides: dict[str, Any]) -> Iterable[str]:
    """Check that a run or checkpoint is as it was written: steps, metrics, samples, config, tokens."""
    from gptmini.cli.verify import verify_folder

    return verify_folder(Path(args[0]))


def configs(args: list[str], options: Section, overrides: dict[str, Any]) -> Iterable[str]:
    """List the configs to start from, or print the one called NAME."""
    # In an installed package the configs lie inside it, in a checkout beside it.
    package = Path(__file__).parent.parent
    installed, checkout = package / "configs", package.parent / "configs"
    folder = installed if installed.is_dir() else checkout
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.yaml"))}
    if not args:
        for name, text in texts.items():
            purpose = text.partition("# Purpose:")[2].partition("\n")[0].strip()
            yield f"{name:20} {purpose}"
    elif args[0] in texts:
        yield texts[args[0]].removesuffix("\n")
    else:
        raise UserError(f"no config is called {args[0]}{did_you_mean(args[0], texts)}; see gptmini configs")


def completion(args: list[str], options: Section, overrides: dict[str, Any]) -> Iterable[str]:
    """Print a script that completes commands, options and paths in your shell."""
    if args[0] not in ("bash", "zsh", "fish"):
        raise UserError(f"gptmini completion takes one of bash, zsh or fish, not {args[0]}")
    return [completion_script(COMMANDS, args[0])]


COMMANDS = {
    "train": Command(train, "[CONFIG.yaml]", range(2), TrainFlags, config=True),
    "generate": Command(generate, "CHECKPOINT", range(1, 2), GenerateOptions),
    "prepare": Command(prepare, "[CONFIG.yaml]", range(2), PrepareFlags, config=True),
    "plan": Command(plan, "[CONFIG.yaml]", range(2), PlanFlags, config=True),
    "evaluate": Command(evaluate, "CHECKPOINT", range(1, 2), EvaluateOptions),
    "export": Command(export, "CHECKPOINT", range(1, 2), ExportOptions),
    "import-nanogpt": Command(import_nanogpt, "CKPT.pt OUT", range(2, 3), ImportOptions),
    "report": Command(report, "RUN [RUN ...]", range(1, 10_000), ReportOptions),
    "serve": Command(serve, "[CHECKPOINT or RUN ...]", range(10_000), ServeOptions),
    "runs": Command(runs, "[FOLDER]", range(2), RunsOptions),
    "verify": Command(verify, "RUN_OR_CHECKPOINT", range(1, 2)),
    "configs": Command(configs, "[NAME]", range(2)),
    "completion": Command(completion, "bash|zsh|fish", range(1, 2)),
}
