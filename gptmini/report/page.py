"""The report: data as JSON, report.js that draws it, and the plotting library, in one HTML file."""

import json
import math
import re
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from gptmini import __version__
from gptmini.atomic_io import write_file
from gptmini.checkpoint.store import load_model
from gptmini.config import RuntimeConfig
from gptmini.data.prepare import prepare
from gptmini.data.token_files import TokenData
from gptmini.errors import DamagedError, UserError
from gptmini.evaluation.baselines import measure_baselines
from gptmini.report.runs import Run, flat_config, read_runs
from gptmini.report.surprisal import as_json, extreme_windows
from gptmini.training.runtime import Runtime, start_runtime

_CURVES = ("step", "split", "loss", "bits_per_byte", "lr", "grad_norm", "tokens", "tokens_per_second")


def write_report(folders: Sequence[str], output: Path, device: str = "auto") -> list[str]:
    """Write the page of these runs to `output`; returns a line for each thing that could not be shown.

    The plots are drawn by Vega-Lite, whose scripts are part of the page, so it opens offline. Raises
    UserError for a folder without a run, or where vl-convert-python, which bundles the scripts, is missing.
    """
    try:
        import vl_convert
    except ImportError:
        raise UserError(
            "the report needs the package vl-convert-python: pip install vl-convert-python"
        ) from None
    runs = read_runs(folders)
    runtime = start_runtime(RuntimeConfig(device=device, precision="fp32"))
    baselines: dict[str, dict[str, float]] = {}
    notes: list[str] = []
    shown = [_run_content(run, runtime, baselines, notes) for run in runs]
    content = {"runs": shown, "notes": notes}
    here = files("gptmini.report")
    # Whatever comes from a run is escaped: as HTML, as JSON inside a script, or as a script.
    parts = {
        "TITLE": escape(", ".join(run.name for run in runs)),
        "STYLE": (here / "report.css").read_text(encoding="utf-8"),
        "SUMMARY": _summary_table(shown) + "".join(f"<p class='note'>{escape(note)}</p>" for note in notes),
        "BODY": _config_table(runs) + _machine_table(runs) + _commands(runs),
        "CONTENT": json.dumps(content, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c"),
        "LIBRARY": vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace(
            "</script", "<\\/script"
        ),
        "SCRIPT": (here / "report.js").read_text(encoding="utf-8"),
        "VERSION": __version__,
    }
    template = (here / "report.html").read_text(encoding="utf-8")
    # In one pass, so that a {{NAME}} inside a part, such as a sample, is left alone.
    page = re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)
    write_file(output, page.encode())
    return notes


def _run_content(
    run: Run, runtime: Runtime, baselines: dict[str, dict[str, float]], notes: list[str]
) -> dict[str, Any]:
    """What report.js shows of a run; whatever is not available is left out, with a line in `notes`."""
    content: dict[str, Any] = {
        "name": run.name,
        "metrics": [
            {key: _number(line.get(key)) for key in (*_CURVES, "elapsed_seconds")} for line in run.metrics
        ],
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
        data = prepare(run.config.data, tokenizer, model.config.context_length, quiet=True)
        if data.digest != run.data_digest:
            raise UserError("its text has changed since it was trained")
        worst, best = extreme_windows(model, data, runtime)
        content |= {"worst": as_json(worst), "best": as_json(best)}
        content["baselines"] = _baselines(data, baselines)
    except (UserError, DamagedError) as error:
        notes.append(f"{run.name}: no token view and no comparison with compressors: {error}")
    if not run.samples:
        notes.append(f"{run.name}: no samples; train.sample_interval makes some")
    return content


def _baselines(data: TokenData, cache: dict[str, dict[str, float]]) -> dict[str, float]:
    if data.digest not in cache:  # runs on the same data share them, as measuring takes seconds
        found = measure_baselines(data)
        cache[data.digest] = {"gzip": found.gzip, "xz": found.xz, "5-gram": found.five_gram}
    return cache[data.digest]


def _number(value: Any) -> Any:
    """The value, or None for nan and infinity, which JSON lacks and a diverged run has."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ------------------------------------------------------------------------------------------------ tables


def _summary_table(shown: list[dict[str, Any]]) -> str:
    rows = [_summary(run) for run in shown]
    head = "".join(f"<th>{escape(key)}</th>" for key in rows[0])
    body = "".join(
        f"<tr data-run='{i}'>" + "".join(f"<td>{escape(value)}</td>" for value in row.values()) + "</tr>"
        for i, row in enumerate(rows)
    )
    return (
        "<section id='summary'><div class='scroll'><table>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></section>"
    )


def _summary(run: dict[str, Any]) -> dict[str, str]:
    val = [line for line in run["metrics"] if line["split"] == "val" and line["loss"] is not None]
    train = [line for line in run["metrics"] if line["split"] == "train"]
    best = min(val, key=lambda line: line["loss"]) if val else None
    last = run["metrics"][-1] if run["metrics"] else None
    speeds = sorted(line["tokens_per_second"] for line in train if line["tokens_per_second"])
    return {
        "run": run["name"],
        "best validation loss": f"{best['loss']:.4f}" if best else "none yet",
        "bits per byte": f"{best['bits_per_byte']:.4f}" if best else "none yet",
        "at step": f"{best['step']:,}" if best else "",
        "steps": f"{last['step']:,}" if last else "0",
        "tokens": f"{last['tokens']:,}" if last else "0",
        "parameters": f"{run['parameters']:,}" if run["parameters"] else "unknown",
        "tokens/s": f"{speeds[len(speeds) // 2]:,.0f}" if speeds else "",
        "time": _duration(last["elapsed_seconds"]) if last else "",
    }


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _config_table(runs: list[Run]) -> str:
    configs = [flat_config(run.config) for run in runs]
    differing = [key for key in configs[0] if len({repr(config[key]) for config in configs}) > 1]
    same = [key for key in configs[0] if key not in differing]
    difference = ""
    if len(runs) > 1:
        difference = "<h3>Keys that differ</h3>" + _table([run.name for run in runs], differing, configs)
    heading = "All other keys" if differing else "All keys"
    rest = f"<details><summary>{heading}</summary>{_table(['value'], same, configs[:1])}</details>"
    return f"<section id='config'><h2>Config</h2>{difference}{rest}</section>"


def _machine_table(runs: list[Run]) -> str:
    keys = list(dict.fromkeys(key for run in runs for key in run.environment))
    if not keys:
        return ""
    table = _table([run.name for run in runs], keys, [run.environment for run in runs])
    return f"<section id='machine'><h2>Machine and versions</h2>{table}</section>"


def _commands(runs: list[Run]) -> str:
    lines = "\n".join(
        f"gptmini train {run.folder / 'config.yaml'} --train.out-dir {run.folder}-again" for run in runs
    )
    return f"<section id='commands'><h2>Reproduce</h2><pre>{escape(lines)}</pre></section>"


def _table(columns: list[str], rows: list[str], values: Sequence[dict[str, Any]]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = ""
    for row in rows:
        cells = "".join(f"<td>{escape(_shown(value.get(row)))}</td>" for value in values)
        body += f"<tr><th>{escape(row)}</th>{cells}</tr>"
    return (
        "<div class='scroll'><table class='keys'>"
        f"<thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _shown(value: Any) -> str:
    """A config value as YAML writes it."""
    return value if isinstance(value, str) else json.dumps(value)
