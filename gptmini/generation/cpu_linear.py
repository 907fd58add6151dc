"""Linear layers for generating on a CPU, where writing a token means reading every weight once.

A processor multiplies faster than its memory delivers, so a token takes as long as the weights take to
arrive. Two things help: every core reading its own share, in the order in which it lies in memory, and fewer
bytes to read.

    fp32   the same weights
    bf16   half the bytes
    int8   a quarter: 8-bit steps, with a scale and an offset for each row of each share

Biases, embeddings and everything between the layers stay float32.

The kernels for matrix products are made for many tokens, and read small weights slowly for one. PyTorch has
two that do not: a matrix times a vector in bfloat16, and, because a product of x is a weighted sum of the
weight's rows, y = x[0] W[0] + x[1] W[1] + ..., the sum of table rows that `embedding_bag` computes. It widens
int8 as it reads, on any processor.
"""

from abc import ABC, abstractmethod
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptmini.errors import UserError
from gptmini.model import GPT, CausalSelfAttention, sdpa

Weights = Literal["fp32", "bf16", "int8"]
MAX_GEMV_ROWS = (
    8  # rows up to which reading small weights for each row costs less than widening them once for all
)


def optimize_for_cpu(model: GPT, weights: Weights = "fp32") -> GPT:
    """Make `model` generate faster, by the linear layers below on a CPU; returns the model.

    With fp32 its logits stay equal to about 1e-6; the others round its weights. On a CPU it is for generating
    from then on, and can no longer be trained or saved. On other devices fp32 changes nothing, bf16 converts
    the whole model, and int8 raises UserError.
    """
    device = model.position_embedding.weight.device.type
    if device != "cpu" and weights == "int8":
        raise UserError(f"int8 weights are for the CPU, but the model is on {device}: use bf16")
    if device != "cpu":
        return model.bfloat16() if weights == "bf16" else model
    layers = {"fp32": FloatLinear, "bf16": BF16Linear, "int8": Int8Linear}
    for parent in list(model.modules()):
        if isinstance(parent, CausalSelfAttention):
            parent.attend = sdpa  # one kernel for a new token instead of five
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                setattr(parent, name, layers[weights](child))
    return model.requires_grad_(False)


class PartitionedLinear(nn.Module, ABC):
    """nn.Linear with its outputs divided into parts, each with a weight (in, out / parts) of its own.

    A single product of few tokens runs on one core in some of the libraries that PyTorch calls, and one core
    does not keep the memory busy.
    """

    parts_per_thread = 1

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.bias: Tensor | None = linear.bias
        numbers = range(self.parts_per_thread * torch.get_num_threads(), 128)
        self.parts = next((n for n in numbers if linear.out_features % n == 0), 1)
        weight = linear.weight.detach().view(self.parts, -1, linear.in_features)
        self._store(weight.transpose(1, 2).contiguous())  # (parts, in, out / parts)

    @abstractmethod
    def _store(self, weight: Tensor) -> None:
        """Keep a weight (parts, in, out / parts), rounded or not."""

    @abstractmethod
    def _multiply(self, rows: Tensor) -> Tensor:
        """Rows (N, in) times every part of the weight: (parts, N, out / parts), or the same flattened."""

    def forward(self, x: Tensor) -> Tensor:
        """(.., in) to (.., out)."""
        rows = x.reshape(-1, x.shape[-1])
        y = self._multiply(rows).view(self.parts, len(rows), -1)
        y = y.transpose(0, 1).reshape(*x.shape[:-1], -1)
        return y.float() if self.bias is None else y + self.bias  # float32, as the bias is


class FloatLinear(PartitionedLinear):
    """float32 weights."""

    def _store(self, weight: Tensor) -> None:
        self.weight = weight

    def _multiply(self, rows: Tensor) -> Tensor:
        return torch.bmm(rows.expand(self.parts, -1, -1), self.weight)


class BF16Linear(nn.Module):
    """bfloat16 weights; inputs are rounded to bfloat16 too, sums are kept in float32."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.bias: Tensor | None = linear.bias
        self.weight = linear.weight.detach().bfloat16()  # (out, in)

    def forward(self, x: Tensor) -> Tensor:
        """(.., in) to (.., out)."""
        rows = x.reshape(-1, x.shape[-1]).bfloat16()
        in_hardware = torch.cpu._is_avx512_bf16_supported()
        if len(rows) == 1:
            y = multiply(self.weight, rows[0])
        elif len(rows) <= MAX_GEMV_ROWS and not in_hardware:
            y = torch.stack([multiply(self.weight, row) for row in rows])
        elif in_hardware:
            y = F.linear(rows, self.weight)
        else:
            y = F.linear(rows.float(), self.weight.float())
        y = y.float().view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias  # float32, as the bias is


def multiply(weight: Tensor, row: Tensor) -> Tensor:
    """weight (out, in) times row (in,), both bfloat16, by PyTorch's own kernel instead of oneDNN's.

    It reads the weight in the order in which it lies in memory, at up to twice the speed.
    """
    onednn = torch.backends.mkldnn.enabled
    # assigned, because its `flags` would take as long as a small product
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]  # typed as the descriptor it is
    try:
        return weight.mv(row)
    finally:
        torch.backends.mkldnn.enabled = onednn


class Int8Linear(PartitionedLinear):
    """Weights rounded to 256 steps between the least and the greatest of a row of a part."""

    parts_per_thread = 2

    def _store(self, weight: Tensor) -> None:
        self.shape = weight.shape
        # each row: its steps, one byte each, then scale and offset, a float32 each
        self.table = torch.ops.quantized.embedding_bag_byte_prepack(weight.flatten(0, 1))

    def _multiply(self, rows: Tensor) -> Tensor:
        if len(rows) > MAX_GEMV_ROWS:
            weight = torch.ops.quantized.embedding_bag_byte_unpack(self.table).view(self.shape)
            return torch.bmm(rows.expand(self.parts, -1, -1), weight)
        indices = bags(self.parts, *rows.shape)
        return torch.ops.quantized.embedding_bag_byte_rowwise_offsets(
            self.table,
            indices.flatten(),
            torch.arange(0, indices.numel(), rows.shape[1], dtype=torch.int32),
            per_sample_weights=rows.expand(self.parts, -1, -1).reshape(-1),
        )


@lru_cache(maxsize=64)
def bags(parts: int, N: int, rows: int) -> Tensor:
    """Which rows of a table of `parts` weights, one below the other, each of the sums takes: (parts N, rows).

    >>> bags(parts=2, N=1, rows=3)
    tensor([[0, 1, 2],
            [3, 4, 5]], dtype=torch.int32)
    """
    return torch.arange(parts * rows, dtype=torch.int32).view(parts, rows).repeat_interleave(N, dim=0)
