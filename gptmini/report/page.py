"""The report: what the runs hold as JSON, report.js that draws it, and tables."""

import json
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from statistics import median_high
from typing import Any

from gptmini import __version__
from gptmini.atomic_io import write_file
from gptmini.checkpoint.store import load_model
from gptmini.config import RuntimeConfig, flatten_config
from gptmini.data.documents import STANDARD_INPUT
from gptmini.data.prepare import corpus_names, prepare
from gptmini.errors import DamagedError, UserError
from gptmini.evaluation.baselines import Baselines, measure_baselines
from gptmini.report.one_file import fill, import_map, plotting_library, read_source, script_json
from gptmini.report.runs import Run, read_runs
from gptmini.report.surprisal import extreme_windows
from gptmini.training.runtime import Runtime, start_runtime

_MODULES = ("element.js", "charts.js", "report.js")
_METRICS = (
    "step", "split", "loss", "bits_per_byte", "lr", "grad_norm", "tokens", "tokens_per_second",
    "elapsed_seconds",
)  # fmt: skip


def write_report(folders: Sequence[str], output: Path, device: str = "auto") -> list[str]:
    """Write the page of these runs to `output`; returns a line for each thing that could not be shown.

    The plots are drawn by Vega-Lite, whose scripts are part of the page, so it opens offline. Raises
    UserError for a folder without a run, or where vl-convert-python, which bundles the scripts, is missing.
    """
    runs = read_runs(folders)
    library = plotting_library()
    runtime = start_runtime(RuntimeConfig(device=device, precision="fp32"))
    baselines: dict[str, Baselines] = {}
    notes: list[str] = []
    shown = [_run_content(run, runtime, baselines, notes) for run in runs]
    # Whatever comes from a run is escaped: as HTML, as JSON inside a script, or as a script.
    parts = {
        "TITLE": escape(", ".join(run.name for run in runs)),
        "STYLE": read_source("looks.css") + read_source("report.css"),
        "BODY": _tables(runs),
        "SUMMARY": _summary_table(shown) + "".join(f"<p class='note'>{escape(note)}</p>" for note in notes),
        "CONTENT": script_json({"runs": shown, "notes": notes}),
        "LIBRARY": library,
        "MODULES": import_map({name: read_source(name) for name in _MODULES}),
        "VERSION": __version__,
    }
    page = fill(read_source("report.html"), parts)
    write_file(output, page.encode(errors="replace"))  # half a surrogate pair has no UTF-8
    return notes


def _run_content(
    run: Run, runtime: Runtime, baselines: dict[str, Baselines], notes: list[str]
) -> dict[str, Any]:
    """What report.js shows of a run; whatever is not available is left out, with a line in `notes`."""
    content: dict[str, Any] = {
        "name": run.name,
        "metrics": [{key: line.get(key) for key in _METRICS} for line in run.metrics],
        "samples": run.samples,
        "baselines": {},
        "worst": [],
        "best": [],
        "parameters": None,
    }
    try:
        model, tokenizer = load_model(run.folder, str(runtime.device))
        content["parameters"] = sum(parameter.numel() for parameter in model.parameters())
        if tokenizer is None:
            raise UserError("its checkpoint holds no tokenizer")
        if STANDARD_INPUT in corpus_names(run.config.data):
            raise UserError("its text came from standard input")
        length = model.config.context_length
        data = prepare(run.config.data, tokenizer, length, quiet=True, trained_on=run.data_digest)
        content |= extreme_windows(model, data, runtime)
        if data.digest not in baselines:  # runs on the same data share them, as measuring takes seconds
            baselines[data.digest] = measure_baselines(data)
        found = baselines[data.digest]
        content["baselines"] = {"gzip": found.gzip, "xz": found.xz, "5-gram": found.five_gram}
    except (UserError, DamagedError) as error:
        notes.append(f"{run.name}: no token view and no comparison with compressors: {error}")
    if not run.samples:
        notes.append(f"{run.name}: no samples; train.sample_interval makes some")
    return content


def _summary_table(shown: list[dict[str, Any]]) -> str:
    rows = [_summary(run) for run in shown]
    return f"<section id='summary'>{_table(rows[0], (row.values() for row in rows))}</section>"


def _summary(run: dict[str, Any]) -> dict[str, str]:
    val = [line for line in run["metrics"] if line["split"] == "val"]
    val = [line for line in val if None not in (line["loss"], line["bits_per_byte"])]  # null: not finite
    train = [line for line in run["metrics"] if line["split"] == "train"]
    best = min(val, key=lambda line: line["loss"], default=None)
    last = run["metrics"][-1] if run["metrics"] else None
    speeds = [line["tokens_per_second"] for line in train if line["tokens_per_second"]]
    return {
        "run": run["name"],
        "best validation loss": f"{best['loss']:.4f}" if best else "none yet",
        "bits per byte": f"{best['bits_per_byte']:.4f}" if best else "none yet",
        "at step": f"{best['step']:,}" if best else "",
        "steps": f"{last['step']:,}" if last else "0",
        "tokens": f"{last['tokens']:,}" if last else "0",
        "parameters": f"{run['parameters']:,}" if run["parameters"] else "unknown",
        "tokens/s": f"{median_high(speeds):,.0f}" if speeds else "",
        "time": _duration(last["elapsed_seconds"]) if last else "",
    }


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _tables(runs: list[Run]) -> str:
    """Config, machine and commands of the runs, as sections of the page."""
    names = [run.name for run in runs]
    config = _rows([flatten_config(run.config) for run in runs])
    differing = [row for row in config if len(set(row[1:])) > 1]
    same = [row[:2] for row in config if row not in differing]
    page = "<section id='config'><h2>Config</h2>"
    if len(runs) > 1:
        page += f"<h3>Keys that differ</h3>{_table(['', *names], differing)}"
    heading = "All other keys" if differing else "All keys"
    page += f"<details><summary>{heading}</summary>{_table(['', 'value'], same)}</details></section>"

    machine = _rows([run.environment for run in runs])
    if machine:
        page += (
            f"<section id='machine'><h2>Machine and versions</h2>{_table(['', *names], machine)}</section>"
        )

    commands = "\n".join(
        f"gptmini train {run.folder / 'config.yaml'} --train.out-dir {run.folder}-again" for run in runs
    )
    page += f"<section id='commands'><h2>Reproduce</h2><pre class='panel'>{escape(commands)}</pre></section>"
    return page


def _rows(columns: list[dict[str, Any]]) -> list[list[str]]:
    """For each key: the key, and its value in each column as YAML writes it."""
    keys = dict.fromkeys(key for column in columns for key in column)
    return [[key, *(_shown(column.get(key)) for column in columns)] for key in keys]


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """An HTML table of texts; the first cell of a row is its heading."""
    columns = "".join(f"<th>{escape(text)}</th>" for text in head)
    body = ""
    for heading, *texts in rows:
        cells = "".join(f"<td>{escape(text)}</td>" for text in texts)
        body += f"<tr><th>{escape(heading)}</th>{cells}</tr>"
    table = f"<table><thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table>"
    return f"<div class='scroll panel'>{table}</div>"
