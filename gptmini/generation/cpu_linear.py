"""Linear layers for generating on a CPU, where one token takes as long as reading every weight once.

So every core reads its own part of a weight, and bf16 has half the bytes to read, int8 a quarter. Biases,
embeddings and everything between the layers stay float32.
"""

from abc import ABC, abstractmethod
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptmini.errors import UserError
from gptmini.model import GPT, CausalSelfAttention, sdpa

Weights = Literal["fp32", "bf16", "int8"]
MAX_PARTITIONED_ROWS = 64  # a larger product keeps all cores busy by itself
MAX_GEMV_ROWS = 8  # up to here, reading small weights once per row costs less than widening them once for all


def optimize_for_cpu(model: GPT, weights: Weights = "fp32") -> GPT:
    """Make `model` generate faster, by the linear layers below on a CPU; returns the model.

    With fp32 it can be trained and saved as before, and logits stay equal to about 1e-6. The others round its
    weights, for generating only. On other devices fp32 changes nothing, bf16 converts the whole model, and
    int8 raises UserError.
    """
    device = model.position_embedding.weight.device.type
    if device != "cpu" and weights == "int8":
        raise UserError(f"int8 weights are for the CPU, but the model is on {device}: use bf16")
    if device != "cpu":
        return model.bfloat16() if weights == "bf16" else model
    layers = {"fp32": PartitionedLinear, "bf16": BF16Linear, "int8": Int8Linear}
    for parent in list(model.modules()):
        if isinstance(parent, CausalSelfAttention):
            parent.attend = sdpa  # one kernel for a new token instead of five
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                setattr(parent, name, layers[weights](child).train(child.training))
    return model if weights == "fp32" else model.requires_grad_(False)


def _parts(out_features: int, at_least: int) -> int:
    """Into how many equal parts to divide the outputs of a layer: as few as keep all threads busy."""
    return next((n for n in range(at_least, 128) if out_features % n == 0), 1)


class PartitionedLinear(nn.Module):
    """nn.Linear, with its parameters, that lets every core read a part of the weight."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias  # (out, in), (out,)
        self.parts = _parts(linear.out_features, torch.get_num_threads())

    def forward(self, x: Tensor) -> Tensor:
        """(.., in) to (.., out)."""
        rows = x.reshape(-1, x.shape[-1])  # (N, in)
        if torch.is_grad_enabled() or len(rows) > MAX_PARTITIONED_ROWS:
            return F.linear(x, self.weight, self.bias)
        # One product of few rows may run on one core, which cannot keep the memory busy: batch the parts.
        weight = self.weight.view(self.parts, -1, rows.shape[1]).transpose(1, 2)  # (parts, in, out / parts)
        y = torch.bmm(rows.expand(self.parts, -1, -1), weight)  # (parts, N, out / parts)
        y = y.transpose(0, 1)  # (N, parts, out / parts)
        y = y.reshape(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


class RoundedLinear(nn.Module, ABC):
    """A linear layer whose weight has been rounded: for generating only."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.bias = linear.bias

    @abstractmethod
    def multiply(self, rows: Tensor) -> Tensor:
        """Rows (N, in) times the weight, (N, out), in any floating format."""

    def forward(self, x: Tensor) -> Tensor:
        """(.., in) to (.., out), float32."""
        if self.training:
            raise UserError('rounded weights cannot be trained: load the model with precision="fp32"')
        y = self.multiply(x.reshape(-1, x.shape[-1])).float().reshape(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias

    def _save_to_state_dict(self, *args: Any) -> None:
        raise UserError('rounded weights cannot be saved: load the model with precision="fp32"')


class BF16Linear(RoundedLinear):
    """bfloat16 weights; inputs are rounded to bfloat16 too, sums are kept in float32."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        self.weight = linear.weight.detach().bfloat16()  # (out, in)

    def multiply(self, rows: Tensor) -> Tensor:
        """By the kernel that is fastest for this number of rows on this processor."""
        rows = rows.bfloat16()
        in_hardware = torch.cpu._is_avx512_bf16_supported()
        if len(rows) != 1 and in_hardware:
            return F.linear(rows, self.weight)
        if len(rows) > MAX_GEMV_ROWS:
            return F.linear(rows.float(), self.weight.float())
        # PyTorch's own kernel reads the weight as it lies in memory, up to twice as fast as oneDNN's. `flags`
        # would take as long as a small product, so the setting is assigned.
        onednn = torch.backends.mkldnn.enabled
        torch.backends.mkldnn.enabled = False  # type: ignore[assignment]  # typed as the descriptor it is
        try:
            return torch.stack([self.weight.mv(row) for row in rows])
        finally:
            torch.backends.mkldnn.enabled = onednn


class Int8Linear(RoundedLinear):
    """Weights rounded to 256 steps between the least and the greatest of a row of a part.

    y = x[0] W[0] + x[1] W[1] + ... is a weighted sum of table rows, as `embedding_bag` computes it, and its
    kernel widens int8 as it reads, on any processor.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        self.parts = _parts(linear.out_features, 2 * torch.get_num_threads())
        weight = linear.weight.detach().view(self.parts, -1, linear.in_features)
        weight = weight.transpose(1, 2).contiguous()  # (parts, in, out / parts)
        self.shape = weight.shape
        # each row: its steps, one byte each, then scale and offset, a float32 each
        self.table = torch.ops.quantized.embedding_bag_byte_prepack(weight.flatten(0, 1))

    def multiply(self, rows: Tensor) -> Tensor:
        """Few rows by weighted sums of the table, many by widening it."""
        if len(rows) > MAX_GEMV_ROWS:
            weight = torch.ops.quantized.embedding_bag_byte_unpack(self.table).view(self.shape)
            y = torch.bmm(rows.expand(self.parts, -1, -1), weight)  # (parts, N, out / parts)
        else:
            indices = _bags(self.parts, *rows.shape)
            y = torch.ops.quantized.embedding_bag_byte_rowwise_offsets(
                self.table,
                indices.flatten(),
                torch.arange(0, indices.numel(), rows.shape[1], dtype=torch.int32),
                per_sample_weights=rows.expand(self.parts, -1, -1).reshape(-1),
            ).view(self.parts, len(rows), -1)
        return y.transpose(0, 1).flatten(1)  # (N, out)


@lru_cache(maxsize=64)
def _bags(parts: int, N: int, rows: int) -> Tensor:
    """Which table rows each sum takes, (parts N, rows): N times those of part 0, N times of part 1, ..."""
    return torch.arange(parts * rows, dtype=torch.int32).view(parts, rows).repeat_interleave(N, dim=0)
