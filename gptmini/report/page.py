"""The report as one HTML page: verdicts and tables, and what report.js draws as JSON."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from gptmini import __version__
from gptmini.atomic_io import write_file
from gptmini.config import RuntimeConfig
from gptmini.report.content import read_content
from gptmini.report.one_file import fill, import_map, plotting_library, read_source, script_json
from gptmini.report.runs import read_runs
from gptmini.report.tables import config_sections, summary, verdicts
from gptmini.training.runtime import start_runtime

_MODULES = ("element.js", "charts.js", "report.js")


def write_report(folders: Sequence[str], output: Path, device: str = "auto") -> list[str]:
    """Write the page of these runs to `output`; returns a line for each thing that could not be shown.

    The plots are drawn by Vega-Lite, whose scripts are part of the page, so it opens offline. Raises
    UserError for a folder without a run, or where vl-convert-python, which bundles the scripts, is missing.
    """
    runs = read_runs(folders)
    library = plotting_library()
    runtime = start_runtime(RuntimeConfig(device=device, precision="fp32"))
    shown, notes = read_content(runs, runtime)
    # Whatever comes from a run is escaped: as HTML, as JSON inside a script, or as a script.
    parts = {
        "TITLE": escape(", ".join(run.name for run in runs)),
        "STYLE": read_source("looks.css") + read_source("report.css"),
        "SUMMARY": verdicts(shown) + summary(shown),
        "NOTES": "".join(f"<p class='note'>{escape(note)}</p>" for note in notes),
        "CONFIG": config_sections(runs),
        "CONTENT": script_json({"runs": shown, "notes": notes}),
        "LIBRARY": library,
        "MODULES": import_map({name: read_source(name) for name in _MODULES}),
        "VERSION": __version__,
    }
    page = fill(read_source("report.html"), parts)
    write_file(output, page.encode(errors="replace"))  # half a surrogate pair has no UTF-8
    return notes
