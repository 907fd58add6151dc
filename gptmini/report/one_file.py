"""One HTML file that opens offline: a template with its parts filled in, ES modules as `data:` URLs."""

import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any
from urllib.parse import quote

from gptmini.errors import MissingPackageError


def read_source(name: str, package: str = "gptmini.report") -> str:
    """The text of a file beside the code, such as looks.css or charts.js."""
    return (files(package) / name).read_text(encoding="utf-8")


def fill(template: str, parts: Mapping[str, str]) -> str:
    """The template with its {{NAME}}s replaced, in one pass: a {{NAME}} inside a part is left alone.

    >>> fill("<p>{{A}} {{B}}</p>", {"A": "{{B}}", "B": "b"})
    '<p>{{B}} b</p>'
    """
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def script_json(value: Any) -> str:
    r"""A value as JSON that may stand inside a script element.

    >>> print(script_json({"text": "</script>"}))
    {"text": "\u003c/script>"}
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")


def import_map(modules: Mapping[str, str]) -> str:
    """The import map, as JSON, by which `import "gptmini/NAME"` finds each of these modules in the page.

    Sources import each other as files do, `from "./charts.js"`. A `data:` URL has no neighbours, so there
    that becomes `from "gptmini/charts.js"`.
    """
    urls = {}
    for name, source in modules.items():
        source = re.sub(r'(from |import |import\()"\./', r'\1"gptmini/', source)
        urls[f"gptmini/{name}"] = "data:text/javascript," + quote(source, safe=" !$&'()*+,-./:;=?@[]_~|{}")
    return script_json({"imports": urls})


def plotting_library() -> str:
    """Vega-Lite and all that it needs, as a script that sets the global `vegaEmbed`; it takes seconds.

    Raises UserError where vl-convert-python, which bundles the scripts without a network, is missing.
    """
    try:
        import vl_convert
    except ImportError:
        raise MissingPackageError("the report", "vl-convert-python") from None
    library: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return library.replace("</script", "<\\/script")
