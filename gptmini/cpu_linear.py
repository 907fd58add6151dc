"""Linear layers for generating on a CPU, where writing a token means reading every weight once.

A processor multiplies faster than its memory delivers, so a token takes as long as the weights take to
arrive. Two things help: every core reading its share of them, and fewer bytes to read.

    fp32   the same weights; every core reads a part
    bf16   half the bytes
    int8   a quarter: one scale per output, rounded weights

Biases, embeddings and everything between the layers stay float32.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptmini.errors import UserError
from gptmini.model import GPT

Weights = Literal["fp32", "bf16", "int8"]


def speed_up(model: GPT, weights: Weights = "fp32") -> GPT:
    """Make `model` generate faster, by the linear layers below on a CPU; returns the model.

    With fp32 its logits stay equal to about 1e-6. The others round its weights, and their model can no
    longer be trained or saved. On other devices fp32 changes nothing, bf16 converts the whole model, and
    int8 raises UserError.
    """
    device = model.position_embedding.weight.device.type
    if device != "cpu" and weights == "int8":
        raise UserError(f"int8 weights are for the CPU, but the model is on {device}: use bf16")
    if device != "cpu":
        return model.bfloat16() if weights == "bf16" else model
    layers = {"fp32": SharedLinear, "bf16": HalfLinear, "int8": Int8Linear}
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                setattr(parent, name, layers[weights](child))
    return model


class SharedLinear(nn.Module):
    """nn.Linear as a batch of products, each with a part of the outputs, so that every core has one to do.

    A single matrix product of few tokens runs on one core in the libraries that PyTorch calls, and one core
    does not keep the memory busy.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight
        self.bias: Tensor | None = linear.bias
        parts = range(torch.get_num_threads(), 64)
        self.parts = next((n for n in parts if linear.out_features % n == 0), 1)

    def forward(self, x: Tensor) -> Tensor:
        """(.., in) to (.., out)."""
        rows = x.reshape(1, -1, x.shape[-1]).expand(self.parts, -1, -1)  # (parts, N, in)
        weight = self.weight.view(self.parts, -1, x.shape[-1]).transpose(1, 2)  # (parts, in, out / parts)
        if self.bias is None:
            y = torch.bmm(rows, weight)  # (parts, N, out / parts)
        else:
            y = torch.baddbmm(self.bias.view(self.parts, 1, -1), rows, weight)
        return y.transpose(0, 1).reshape(*x.shape[:-1], -1)


class HalfLinear(nn.Module):
    """bfloat16 weights, multiplied as they are for a single token; more tokens are worth the widening."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.bias: Tensor | None = linear.bias
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
        self.bias: Tensor | None = linear.bias
        weight = linear.weight.detach()
        self.scale = weight.abs().amax(dim=1).clamp(min=1e-30) / 127  # (out,); not 0 for rows of zeros
        self.weight = torch.round(weight / self.scale[:, None]).to(torch.int8)  # (out, in)

    def forward(self, x: Tensor) -> Tensor:
        """(.., in) to (.., out)."""
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) <= 16 and x.shape[-1] % 32 == 0:  # the kernel reads blocks of 32 inputs
            y = torch._weight_int8pack_mm(rows.bfloat16(), self.weight, self.scale.bfloat16()).float()
            y = y.view(*x.shape[:-1], -1)
        else:
            y = F.linear(x, self.weight.float()) * self.scale
        return y if self.bias is None else y + self.bias
