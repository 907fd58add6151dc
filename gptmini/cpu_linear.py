"""Linear layers for generating on a CPU, where writing a token means reading every weight once.

A processor multiplies faster than its memory delivers, so a token takes as long as the weights take to
arrive. Two things help: weights that lie in the order in which they are read, and fewer bytes of them.

    fp32   in blocks that oneDNN reads at the memory's full speed; the same numbers as nn.Linear
    bf16   half the bytes
    int8   a quarter: one scale per output, rounded weights

Biases, embeddings and everything between the layers stay float32.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptmini.model import GPT

Weights = Literal["fp32", "bf16", "int8"]


def lay_out_for_cpu(model: GPT, weights: Weights = "fp32") -> GPT:
    """Replace the linear layers of `model` by ones for generating on a CPU; returns the model.

    It can no longer be trained or saved. Its memory shrinks with the weights, while fp32 takes as much as
    before, and the output layer, no longer tied to the embedding, a copy.
    """
    layers = {"fp32": BlockedLinear, "bf16": HalfLinear, "int8": Int8Linear}
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear):
                setattr(parent, name, layers[weights](child))
    return model.eval()


class BlockedLinear(nn.Module):
    """float32 weights in oneDNN's blocked layout: what `torch.compile` does to frozen weights."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.bias = linear.bias
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), 1)

    def forward(self, x: Tensor) -> Tensor:
        """(.., in) to (.., out)."""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


class HalfLinear(nn.Module):
    """bfloat16 weights, multiplied as they are for a single token; more tokens are worth the widening."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.bias = linear.bias
        self.weight = linear.weight.detach().bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        """(.., in) to (.., out)."""
        if x.numel() > x.shape[-1]:
            return F.linear(x, self.weight.float(), self.bias)
        y = F.linear(x.bfloat16(), self.weight).float()
        return y if self.bias is None else y + self.bias


class Int8Linear(nn.Module):
    """int8 weights times one float scale per output, multiplied as they are for a few tokens."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.bias = linear.bias
        weight = linear.weight.detach()
        self.scale = weight.abs().amax(dim=1).clamp(min=1e-30) / 127  # (out,); not 0 for rows of zeros
        self.weight = torch.round(weight / self.scale[:, None]).to(torch.int8)  # (out, in)

    def forward(self, x: Tensor) -> Tensor:
        """(.., in) to (.., out)."""
        rows = x.view(-1, x.shape[-1])
        if len(rows) <= 16 and x.shape[-1] % 32 == 0:
            y = torch._weight_int8pack_mm(rows.bfloat16(), self.weight, self.scale.bfloat16()).float()
            y = y.view(*x.shape[:-1], -1)
        else:
            y = F.linear(x, self.weight.float()) * self.scale
        return y if self.bias is None else y + self.bias
