"""The verdicts and tables of the report, as HTML. Whatever comes from a run is escaped."""

import json
from collections.abc import Iterable, Sequence
from html import escape
from statistics import median_high
from typing import Any

from gptmini.config import flatten_config
from gptmini.evaluation.verdict import describe_bits, describe_copying, describe_trend
from gptmini.report.runs import Run


def verdicts(shown: list[dict[str, Any]]) -> str:
    """A paragraph a run: what its numbers say in words."""
    lines = (f"<p><b>{escape(run['name'])}</b> {escape(_verdict(run))}</p>" for run in shown)
    return f"<section id='verdict'>{''.join(lines)}</section>"


def _verdict(run: dict[str, Any]) -> str:
    """What the numbers of a run say, in words, as far as there are any."""
    val = _evaluations(run)
    if not val:
        return "Not evaluated yet."
    best = min(val, key=lambda line: line["loss"])
    sentences = [describe_bits(best["bits_per_byte"], run["baselines"]) + "."]
    if run["copied"] is not None:
        sentences.append(describe_copying(*run["copied"]))
    sentences.append(describe_trend([(line["step"], line["loss"]) for line in val]))
    return " ".join(sentences)


def summary(shown: list[dict[str, Any]]) -> str:
    """The table of the runs' best losses, sizes and times."""
    rows = [_summary(run) for run in shown]
    return f"<section id='summary'>{_table(rows[0], (row.values() for row in rows), named=True)}</section>"


def _evaluations(run: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of evaluations whose numbers are finite."""
    val = [line for line in run["metrics"] if line["split"] == "val"]
    return [line for line in val if None not in (line["loss"], line["bits_per_byte"])]


def _summary(run: dict[str, Any]) -> dict[str, str]:
    val = _evaluations(run)
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


def config_sections(runs: Sequence[Run]) -> str:
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


def _table(head: Iterable[str], rows: Iterable[Iterable[str]], *, named: bool = False) -> str:
    """An HTML table of texts; the first cell of a row is its heading.

    With `named`, each cell has its column's name, for a window in which the table would be too wide.
    """
    names = [escape(text) for text in head]
    columns = "".join(f"<th>{name}</th>" for name in names)
    body = ""
    for heading, *texts in rows:
        attributes = (f" data-name='{name}'" if named else "" for name in names[1:])
        cells = "".join(f"<td{a}>{escape(text)}</td>" for a, text in zip(attributes, texts, strict=False))
        body += f"<tr><th>{escape(heading)}</th>{cells}</tr>"
    table = f"<table><thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table>"
    return f"<div class='scroll panel'>{table}</div>"
