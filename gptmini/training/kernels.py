"""Which matrix kernels this process runs, as a digest of what they compute.

A library picks one by processor, threads, shapes and variables such as MKL_CBWR, and each adds in an order of
its own. So the products themselves are hashed, not what they seem to depend on.
"""

import math
from collections.abc import Iterable
from hashlib import sha256

import torch
from torch import Tensor
from torch.nn import functional as F

# Digests of these are in checkpoints: with other shapes, every run would say that its kernels differ.
LINEAR = ((8, 16, 64), (64, 384, 1536), (64, 1536, 384))  # rows, inputs and outputs
ATTENTION = ((2, 2, 64, 64),) * 3  # queries, keys, values: (B, H, T, D)


def kernel_digest(device: torch.device, dtypes: Iterable[torch.dtype]) -> str:
    """sha256 over the products of a training step, forward and backward, in each dtype; milliseconds."""
    digest = sha256()

    def fixed(shape: Iterable[int], dtype: torch.dtype) -> Tensor:
        """Numbers around 0 that need rounding, from primes and not from a generator."""
        numbers = torch.arange(math.prod(shape)) * 7919 % 10007 / 10007 - 0.5
        return numbers.reshape(tuple(shape)).to(device, dtype).requires_grad_()

    with torch.enable_grad():
        for dtype in sorted(set(dtypes), key=str):
            products = []
            for rows, inputs, outputs in LINEAR:
                layer = [fixed(shape, dtype) for shape in ((rows, inputs), (outputs, inputs), (outputs,))]
                products.append((F.linear(*layer), layer))
            q, k, v = (fixed(shape, dtype) for shape in ATTENTION)
            fused = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            # on a GPU, the fused backward pass adds in an order that varies
            products += [(q @ k.mT @ v, [q, k, v]), (fused, [] if device.type == "cuda" else [q, k, v])]
            for output, tensors in products:
                # a sum, as torch imports sympy, half a second, where it is given gradients to start from
                total = (output * fixed(output.shape, dtype)).sum()
                gradients = torch.autograd.grad(total, tensors) if tensors else ()
                for tensor in (output, *gradients):
                    digest.update(tensor.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()
