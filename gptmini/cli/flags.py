"""The options that each command has besides the keys of a config: a schema a command."""

from typing import Literal

from pydantic import Field

from gptmini.config import Device
from gptmini.generation.sampling import SamplingOptions
from gptmini.paths import PathText
from gptmini.schema import Section


class TrainFlags(Section):
    """Options of `gptmini train` that are no keys of the config."""

    minutes: float | None = Field(
        None,
        gt=0,
        le=100_000,
        description="Time for a run without a CONFIG.yaml; null: 5 minutes. With --resume, time to add.",
    )
    resume: bool = Field(False, description="Resume the run in train.out_dir, if it has a checkpoint.")
    quiet: bool = Field(False, description="Print nothing but errors.")


class PrepareFlags(Section):
    """Options of `gptmini prepare` that are no keys of the config."""

    list: bool = Field(False, description="List the named corpora with size and licence, and do no more.")
    stats: bool = Field(
        False,
        description="Documents, tokens, bytes per token (and GPT-2's), longest document, repeated share.",
    )


class PlanFlags(Section):
    """Options of `gptmini plan` that are no keys of the config."""

    world_size: int = Field(1, ge=1, le=1_000_000, description="Processes that torchrun starts, in all.")
    tokens_per_second: float | None = Field(
        None, gt=0.0, description="Throughput of all processes together, to estimate the hours."
    )
    measure: bool = Field(False, description="Run a few steps on this machine to measure speed and memory.")


class LoadOptions(Section):
    """How a checkpoint's weights are loaded."""

    device: Device = Field("auto", description="Device to compute on; auto: CUDA, else MPS, else the CPU.")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="Number format of the weights.")
    quantize: Literal["int8"] | None = Field(
        None, description="int8: weights rounded to a quarter of their bytes, for the CPU."
    )


class GenerateOptions(LoadOptions, SamplingOptions):
    """Options of `gptmini generate`."""

    prompt: str | None = Field(None, description="Text to continue; - reads it from standard input.")
    prompt_file: PathText | None = Field(
        None, description="A file that holds the prompt; the line break at its end is not part of it."
    )
    max_new_tokens: int = Field(200, ge=0, le=1_000_000_000, description="Tokens to generate at most.")
    num_samples: int = Field(1, ge=1, le=1_000_000, description="How many texts to generate.")
    stop: tuple[str, ...] = Field((), strict=False, description="End a text before any of these strings.")
    truncate_prompt: Literal["left"] | None = Field(
        None, description="left: of a prompt longer than the model's context, read the end; null: refuse it."
    )
    seed: int | None = Field(None, ge=0, lt=2**63, description="The same seed gives the same text.")
    parse_special: bool = Field(
        False, description="Names of special tokens in the prompt, such as <|endoftext|>, are those tokens."
    )
    allow_invalid_utf8: bool = Field(
        False, description="For data that is no text: also write bytes that are no character, as U+FFFD."
    )
    interactive: bool = Field(False, description="A terminal session: type text, the model continues it.")


class EvaluateOptions(LoadOptions):
    """Options of `gptmini evaluate`."""

    corpus: tuple[PathText, ...] | None = Field(
        None, strict=False, description="Another text: names, files, folders or globs."
    )
    text_field: str | None = Field(
        None, description="The field, or column of parquet, that holds its text; null: as in the run."
    )
    memorization: bool = Field(
        False, description="How much of samples and validation text stands in the training text."
    )
    batch_size: int = Field(32, ge=1, le=1_000_000, description="Sequences per forward pass.")


class ExportOptions(Section):
    """Options of `gptmini export`."""

    format: Literal["gguf", "html"] = Field(
        "gguf",
        description="gguf: for llama.cpp, ollama and their like; html: a page to play with the model, which "
        "opens offline.",
    )
    dtype: Literal["float32", "float16", "q8_0", "int8"] = Field(
        "float16",
        description="Number format of the weights; q8_0 of gguf and int8 of html take a quarter of float32.",
    )
    output: PathText | None = Field(
        None, description="The file to write; null: NAME-DTYPE.FORMAT here, with the checkpoint's name."
    )


class ImportOptions(Section):
    """Options of `gptmini import-nanogpt`."""

    meta: PathText | None = Field(
        None,
        description="A character model's meta.pkl; null: beside CKPT.pt, or in data/DATASET as in nanoGPT.",
    )


class ServeOptions(LoadOptions):
    """Options of `gptmini serve`."""

    port: int = Field(8000, ge=0, le=65535, description="The port to listen on; 0: any free one.")
    host: str = Field(
        "127.0.0.1",
        description="The address to listen on; another than this machine's own lets others in, by a token.",
    )
    open: bool = Field(False, description="Open the page in the browser.")


class RunsOptions(Section):
    """Options of `gptmini runs`."""

    delete: str | None = Field(None, description="Delete the run of this name, after a question.")
    yes: bool = Field(False, description="Delete without the question.")


class ReportOptions(Section):
    """Options of `gptmini report`."""

    output: PathText = Field("report.html", description="The file to write; replaced where it exists.")
    device: Device = Field("auto", description="Device to compute on; auto: CUDA, else MPS, else the CPU.")
