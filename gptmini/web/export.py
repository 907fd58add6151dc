"""A model and the page that plays with it as one HTML file, which opens from a double click, offline.

The weights lie in the file as bytes, 2 % longer than they are, where base64 would be a third longer: the page
is in windows-1252, in which every byte is a character. weights.js reads them.
"""

import json
import zlib
from collections.abc import Iterable, Iterator
from html import escape
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from gptmini.atomic_io import write_file
from gptmini.checkpoint.store import open_weights
from gptmini.data.tokenizers import Tokenizer
from gptmini.errors import UserError
from gptmini.report.one_file import import_map, read_source
from gptmini.training.estimate import count_parameters
from gptmini.web.describe import describe

MAX_PARAMETERS = 40_000_000
_ONLY_SERVED = ("server_engine.js", "watch.js", "checkpoints.js")  # what the page needs beside a server alone
_ESCAPED = np.frombuffer(b"\0\r<=", dtype=np.uint8)  # HTML changes the first three; = marks an escape
_BLOCK_BYTES = 1 << 20

Arrays = list[tuple[str, np.ndarray]]


def export_html(output: Path, folder: Path, dtype: str) -> str:
    """Write the page with the model of a checkpoint in it; returns what was written, in words.

    float16 rounds every weight; int8 rounds each row of a matrix to 255 steps, and the rest to float16.

    Raises UserError where the model has no tokenizer, more than 40 million parameters, or a weight too large
    for float16; what `open_weights` raises; OSError where the file cannot be written.
    """
    header, arrays = read_model(folder, dtype)
    before, after = _page(header["info"]["name"])
    write_file(output, chain([before], embed(header, arrays), [after]))
    return f"{output}: {output.stat().st_size:,} bytes, {dtype}"


def read_model(folder: Path, dtype: str) -> tuple[dict[str, Any], Arrays]:
    """All that the page computes with: what is said in JSON, and the arrays. Raises as `export_html`."""
    if dtype not in ("float16", "int8"):
        raise UserError(f"--format html takes --dtype float16 or int8, not {dtype}")
    config, parameters, tokenizer = open_weights(folder)
    if tokenizer is None:
        raise UserError(f"{folder}: holds no tokenizer, and the page needs one")
    count = count_parameters(config)
    if count > MAX_PARAMETERS:
        megabytes = count * (1 if dtype == "int8" else 2) / 1e6
        raise UserError(
            f"{folder}: {count:,} parameters would make a file of {megabytes:,.0f} MB, too large for a page "
            f"(at most {MAX_PARAMETERS:,} parameters): gptmini serve {folder} takes any size"
        )
    arrays = [*_token_arrays(tokenizer, config.vocab_size), *_weight_arrays(parameters, dtype)]
    info = describe(folder, folder.resolve().name)
    header = {
        "info": {**info, "id": "model", "dtype": dtype, "run": None, "checkpoints": []},
        "config": config.model_dump(include={"n_layer", "n_head", "n_embd", "vocab_size", "context_length"}),
        "tokenizer": _describe_tokenizer(tokenizer, config.vocab_size),
        "arrays": [[name, str(array.dtype), array.shape] for name, array in arrays],
    }
    return header, arrays


def _weight_arrays(parameters: Iterable[tuple[str, Tensor]], dtype: str) -> Iterator[tuple[str, np.ndarray]]:
    for name, tensor in parameters:
        values = tensor.numpy()
        if dtype == "int8" and values.ndim == 2 and name != "position_embedding.weight":
            scales = np.abs(values).max(axis=1, keepdims=True) / 127
            scales[scales == 0] = 1
            yield name, np.rint(values / scales).astype(np.int8)
            yield f"{name}.scales", scales[:, 0].astype(np.float32)
            continue
        if np.abs(values).max() > np.finfo(np.float16).max:
            largest = np.abs(values).max()
            raise UserError(
                f"parameter {name} holds a weight of {largest:.3g}, too large for the page's float16: "
                "gptmini serve shows the same page with float32"
            )
        yield name, values.astype(np.float16)


def _token_arrays(tokenizer: Tokenizer, vocab_size: int) -> Arrays:
    tokens = tokenizer.tokens[:vocab_size]
    lengths = np.array([len(token) for token in tokens], dtype=np.uint16)
    return [
        ("tokenizer.lengths", lengths),
        ("tokenizer.bytes", np.frombuffer(b"".join(tokens), dtype=np.uint8)),
    ]


def _describe_tokenizer(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
    """What tokenizers.js needs besides the bytes of each token, of the ids that the model has rows for."""

    def known(token: int | None) -> int | None:
        return token if token is not None and token < vocab_size else None

    return {
        "kind": tokenizer.kind,
        "special_tokens": {name: i for name, i in tokenizer.special_tokens.items() if i < vocab_size},
        "end_of_text": known(tokenizer.end_of_text),
        "start_token": known(tokenizer.start_token),
        "byte_fallback": getattr(tokenizer, "byte_fallback", False),
    }


def embed(header: dict[str, Any], arrays: Arrays) -> Iterator[bytes]:
    """A script element that holds the model as bytes, in pieces; `readModel` of weights.js reads it."""
    text = json.dumps(header).encode()
    blocks = [len(text).to_bytes(4, "little"), text, *(array.tobytes() for _, array in arrays)]
    crc, counts = 0, np.zeros(256, dtype=np.int64)
    for block in blocks:
        crc = zlib.crc32(block, crc)
        counts += np.bincount(np.frombuffer(block, dtype=np.uint8), minlength=256)
    # Of all numbers that could be added to each byte, the one after which the fewest need an escape.
    shift = min(range(256), key=lambda shift: counts[(_ESCAPED.astype(int) - shift) % 256].sum())
    yield f'<script type="text/plain" id="weights" data-shift="{shift}" data-crc32="{crc}">'.encode()
    for block in blocks:
        for i in range(0, len(block), _BLOCK_BYTES):
            yield _escape_bytes(block[i : i + _BLOCK_BYTES], shift)
    yield b"</script>\n"


def _escape_bytes(data: bytes, shift: int) -> bytes:
    """The bytes plus `shift`, those in _ESCAPED as = and 64 more; all sums are modulo 256.

    >>> _escape_bytes(b"ab=c", 0)
    b'ab=}c'
    """
    shifted = np.frombuffer(data, dtype=np.uint8) + np.uint8(shift)
    escaped = np.isin(shifted, _ESCAPED)
    widths = 1 + escaped.astype(np.int64)
    place = np.cumsum(widths) - 1  # of each byte, behind its escape
    written = np.repeat(shifted, widths)
    written[place[escaped] - 1] = ord("=")
    written[place[escaped]] += np.uint8(64)
    return written.tobytes()


def _page(title: str) -> tuple[bytes, bytes]:
    """page.html with its styles and modules inside, up to where the model is to stand, and the rest."""
    names = [path.name for path in files("gptmini.web").iterdir() if path.name.endswith(".js")]
    modules = {name: read_source(name, "gptmini.web") for name in sorted(names) if name not in _ONLY_SERVED}
    modules["element.js"] = read_source("element.js")
    scripts = f'<script type="importmap">{import_map(modules)}</script>\n'
    scripts += '<script type="module">import "gptmini/page.js";</script>\n{{MODEL}}'
    page_css = read_source("page.css", "gptmini.web")
    swaps = {
        '<meta charset="utf-8">': '<meta charset="windows-1252">',
        "<title>gptmini</title>": f"<title>{escape(title)}</title>",
        '<link rel="stylesheet" href="looks.css">': f"<style>\n{read_source('looks.css')}</style>",
        '<link rel="stylesheet" href="page.css">': f"<style>\n{page_css}</style>",
        'data-engine="server"': 'data-engine="local"',
        '<script type="module" src="page.js"></script>': scripts,
    }
    page = read_source("page.html", "gptmini.web")
    for old, new in swaps.items():
        assert page.count(old) == 1, old
        page = page.replace(old, new)
    before, after = page.encode("ascii", "xmlcharrefreplace").split(b"{{MODEL}}")
    return before, after
