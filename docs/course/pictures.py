"""The pictures of the course, drawn from what its chapters compute: each as SVG, for light and dark pages.

python docs/course/pictures.py
"""

import math
from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import torch
from chapters import COURSE, run
from matplotlib.axes import Axes
from torch import Tensor

import gptmini

INK = {"": "#24292f", "-dark": "#d0d7de"}  # of text and lines on a light and on a dark page
MAPS = {"": "Blues", "-dark": "cividis"}


def save(name: str, draw: Callable[[str], None]) -> None:
    """Draw a picture twice; it has no background of its own."""
    for theme, ink in INK.items():
        names = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
        style = dict.fromkeys(names, ink) | {"svg.hashsalt": name, "font.size": 9, "image.cmap": MAPS[theme]}
        with plt.rc_context(style):
            draw(theme)
            path = COURSE / f"images/{name}{theme}.svg"
            plt.savefig(path, transparent=True, bbox_inches="tight", metadata={"Date": None})
            plt.close()


def label(axes: Axes, text: str, rows: bool = True) -> None:
    """Write the characters of a text along both axes; a blank as an underscore."""
    shown = [{" ": "_", "\n": "\\n"}.get(character, character) for character in text]
    axes.set_xticks(range(len(shown)), shown)
    axes.set_yticks(range(len(shown)) if rows else [], shown if rows else [])
    axes.tick_params(length=0, labelsize=9 if len(text) < 9 else 7)
    axes.xaxis.tick_top()


def draw_mask(mask: Tensor, text: str) -> None:
    """The causal mask (T, T): each row, a position, may look at the filled columns."""
    axes = plt.figure(figsize=(3, 3)).gca()
    axes.imshow(mask.float(), vmin=-0.6, vmax=1.4)
    label(axes, text)
    axes.set_ylabel("position")
    axes.set_xlabel("may look at")
    axes.xaxis.set_label_position("top")


def draw_embedding_sum(tokens: Tensor, positions: Tensor, text: str) -> None:
    """Token vectors (T, C), plus position vectors (T, C), is the model's input; the first 16 of C."""
    parts = {"token": tokens, "+  position": positions, "=  input": tokens + positions}
    _, axes = plt.subplots(1, 3, figsize=(8, 2.2))
    for ax, (title, values) in zip(axes, parts.items(), strict=True):
        ax.imshow(values[:, :16], vmin=-0.4, vmax=0.4, cmap="RdBu", aspect="auto")
        ax.set_yticks(range(len(text)), list(text))
        ax.set_xticks([])
        ax.tick_params(length=0)
        ax.set_title(title, fontsize=9)


def draw_attention(weights: Tensor, text: str) -> None:
    """The attention weights (H, T, T) of one layer, a square for each head."""
    _, axes = plt.subplots(1, len(weights), figsize=(11, 3))
    for head, (ax, values) in enumerate(zip(axes, weights, strict=True)):
        ax.imshow(values, vmin=0, vmax=1)
        label(ax, text, rows=head == 0)
        ax.set_xlabel(f"head {head}")


def draw_loss(history: list[float], baselines: dict[str, float], ink: str) -> None:
    """Bits per byte of each training step, beside what the compressors reach."""
    bits = torch.tensor(history) / math.log(2)
    smooth = bits.unfold(0, 10, 1).mean(dim=-1)  # means of ten steps
    axes = plt.figure(figsize=(6, 3.2)).gca()
    axes.plot(range(10, len(history) + 1), smooth, color="#3b82f6")
    for name in ("gzip", "xz", "5-gram"):
        axes.axhline(baselines[name], color=ink, alpha=0.5, linewidth=0.8, linestyle="--")
        axes.text(0, baselines[name] + 0.04, name)  # on the left, where the curve is far above
    axes.set_xlabel("training step")
    axes.set_ylabel("bits per byte")
    axes.set_ylim(2, 6.2)
    axes.spines[["top", "right"]].set_visible(False)


def draw_all(names: dict[str, Any]) -> None:
    """Draw all pictures from the names of chapters 0 to 9."""
    gpt, encode, line = names["gpt"], names["encode"], "Juliet is the sun"
    save("mask", lambda theme: draw_mask(torch.ones(5, 5).tril(), "Romeo"))

    ids = torch.tensor(encode("Juliet he"))
    with torch.inference_mode():
        tokens, positions = gpt.token_embedding(ids), gpt.position_embedding(torch.arange(len(ids)))
    save("embedding-sum", lambda theme: draw_embedding_sum(tokens, positions, "Juliet he"))

    config = gptmini.GPTConfig(vocab_size=names["V"], n_layer=2, n_head=4, n_embd=64, context_length=32)
    model = gptmini.GPT(config).eval()
    model.load_state_dict(gpt.state_dict())
    with torch.inference_mode(), gptmini.record_attention(model) as recorded:
        model(torch.tensor([encode(line)]))
    save("attention", lambda theme: draw_attention(recorded[0][0], line))
    save("loss", lambda theme: draw_loss(names["history"], names["baselines"], INK[theme]))


if __name__ == "__main__":
    everything: dict[str, Any] = {}
    run(9, everything)
    draw_all(everything)
