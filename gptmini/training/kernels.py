"""Which matrix kernels this process runs: fixed products, whose bits are compared at a resume.

The library picks a kernel by processor, threads, shapes and environment variables such as MKL_CBWR, and each
adds in an order of its own. So the products themselves are hashed, not what they seem to depend on.
"""

import math
from collections.abc import Iterable
from hashlib import sha256

import torch
from torch import Tensor
from torch.nn import functional as F

SHAPES = ((8, 16, 64), (64, 384, 1536), (64, 1536, 384))  # rows, inputs and outputs of a Linear layer
ATTENTION = (2, 2, 64, 64)  # B, H, T, D


def kernel_digest(device: torch.device, dtypes: Iterable[torch.dtype]) -> str:
    """sha256 over the products of a training step, forward and backward, in each dtype; milliseconds."""
    digest = sha256()

    def add(output: Tensor, *inputs: Tensor) -> None:
        upstream = _fixed(output.shape, device, output.dtype)
        gradients = torch.autograd.grad(output, inputs, upstream) if inputs else ()
        for tensor in (output, *gradients):
            digest.update(tensor.detach().float().cpu().contiguous().numpy().data)

    with torch.enable_grad():
        for dtype in sorted(set(dtypes), key=str):
            for rows, inputs, outputs in SHAPES:
                x, weight, bias = (
                    _fixed(shape, device, dtype).requires_grad_()
                    for shape in ((rows, inputs), (outputs, inputs), (outputs,))
                )
                add(F.linear(x, weight, bias), x, weight, bias)
            q, k, v = (_fixed(ATTENTION, device, dtype).requires_grad_() for _ in range(3))
            add((q @ k.transpose(-2, -1)) @ v, q, k, v)
            fused = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            add(fused, *(() if device.type == "cuda" else (q, k, v)))  # its atomic additions vary there
    return digest.hexdigest()


def _fixed(shape: Iterable[int], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Numbers around 0 that need rounding, the same everywhere: no generator, no library function."""
    shape = tuple(shape)
    numbers = torch.arange(math.prod(shape)) * 7919 % 10007  # two primes: no pattern in a row
    return (numbers / 10007 - 0.5).reshape(shape).to(device, dtype)
