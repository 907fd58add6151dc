"""Weights in 16 or 8 bits, for generating: a new token reads every weight once, and these have fewer bytes.

Biases, embeddings and everything between the linear layers stay float32.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptmini.errors import UserError
from gptmini.model import GPT, CausalSelfAttention, sdpa

Precision = Literal["fp32", "bf16", "int8"]


def set_precision(model: GPT, precision: Precision = "fp32") -> GPT:
    """Round the weights of the linear layers, for generating only; returns the model.

    With fp32 only its attention kernel changes, and it can be trained and saved as before. On other devices
    than a CPU bf16 converts the whole model, and int8 raises UserError.
    """
    device = model.position_embedding.weight.device.type
    if device != "cpu" and precision == "int8":
        raise UserError(f"int8 weights are for the CPU, but the model is on {device}: use bf16")
    if device != "cpu":
        return model.bfloat16() if precision == "bf16" else model
    for parent in list(model.modules()):
        if isinstance(parent, CausalSelfAttention):
            parent.attend = sdpa  # one kernel instead of five
        for name, child in parent.named_children():
            if precision != "fp32" and type(child) is nn.Linear:
                setattr(parent, name, RoundedLinear(child, precision).train(child.training))
    return model if precision == "fp32" else model.requires_grad_(False)


class RoundedLinear(nn.Module):
    """A linear layer whose weight has been rounded to bfloat16, or to int8 with one scale for each output."""

    def __init__(self, linear: nn.Linear, precision: Precision) -> None:
        super().__init__()
        weight, self.bias = linear.weight.detach(), linear.bias  # (out, in), (out,)
        self.scale: Tensor | None = None  # (out,)
        if precision == "int8":
            self.scale = weight.abs().amax(dim=1).clamp(min=1e-30) / 127  # a row of zeros stays zeros
            self.weight = (weight / self.scale[:, None]).round().to(torch.int8)
        else:
            self.weight = weight.bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        """(.., in) to (.., out), float32."""
        if self.training:
            raise UserError('rounded weights cannot be trained: load the model with precision="fp32"')
        if self.weight.dtype == torch.bfloat16 and torch.cpu._is_avx512_bf16_supported():
            y = F.linear(x.bfloat16(), self.weight).float()  # the processor has products of bfloat16
        else:
            y = F.linear(x, self.weight.float())
        y = y if self.scale is None else y * self.scale
        return y if self.bias is None else y + self.bias

    def _save_to_state_dict(self, *args: Any) -> None:
        raise UserError('rounded weights cannot be saved: load the model with precision="fp32"')
