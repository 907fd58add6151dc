"""New tokens on a CPU, one per row, by compiled loops in the place of `hidden_states` and `lm_head`."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gptmini.generation.kv_cache import KVCache, Step
from gptmini.generation.precision import RoundedLinear
from gptmini.model import ATTENTION, GPT, MLP, Block, CausalSelfAttention

KNOWN = {GPT, Block, CausalSelfAttention, MLP, RoundedLinear}
KNOWN |= {nn.ModuleList, nn.Embedding, nn.Linear, nn.LayerNorm, nn.Dropout}
_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)


def compiled_step(model: GPT) -> Step | None:
    """The step of `last_logits` for a model in eval mode; None where numba is missing or the model is not as
    it was. A run that trains does without: its samples are not worth seconds of compiling.

    The loops read the model's own memory, so they see weights that change in place.
    """
    # The threads of OpenMP stay behind at a fork, and the child would wait for them for ever.
    if model.training or _forked or not _is_unchanged(model):
        return None
    try:
        import numba

        from gptmini.generation.cpu_kernels import attend, layer_norm, multiply
    except ImportError:
        return None
    wte, wpe = (_array(table.weight) for table in (model.token_embedding, model.position_embedding))
    blocks = [_block(block) for block in model.blocks]
    ln_f, lm_head = _norm(model.ln_f), _linear(model.lm_head)

    def step(tokens: Sequence[int], cache: KVCache) -> Tensor:
        at_most = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]  # set as numba is imported
        numba.set_num_threads(min(torch.get_num_threads(), at_most))
        cache.advance(1)
        lengths = np.array(cache.lengths)  # (B,), the new token counted
        x = wte[list(tokens)] + wpe[lengths - 1]  # (B, C)
        for block, keys, values in zip(blocks, cache.keys, cache.values, strict=True):
            ln_1, c_attn, attn_c_proj, ln_2, c_fc, mlp_c_proj = block  # as in Block.forward
            qkv = multiply(layer_norm(x, *ln_1), *c_attn, False)  # (B, 3C)
            x += multiply(attend(qkv, keys.numpy(), values.numpy(), lengths), *attn_c_proj, False)
            hidden = multiply(layer_norm(x, *ln_2), *c_fc, True)  # (B, 4C)
            x += multiply(hidden, *mlp_c_proj, False)
        return torch.from_numpy(multiply(layer_norm(x, *ln_f), *lm_head, False))  # (B, V)

    return step


def _is_unchanged(model: GPT) -> bool:
    """Whether the modules compute in float32 on a CPU, and nothing but what `model.py` says."""
    modules, parameters = list(model.modules()), list(model.parameters())
    return (
        all(type(m) in KNOWN and not m._forward_hooks and not m._forward_pre_hooks for m in modules)
        and all(m.attend in ATTENTION.values() for m in modules if isinstance(m, CausalSelfAttention))
        and all(type(p) is nn.Parameter and p.device.type == "cpu" for p in parameters)
        and all(p.dtype == torch.float32 and p.is_contiguous() for p in parameters)
        and not torch.is_autocast_enabled("cpu")
    )


def _block(block: Any) -> tuple[Any, ...]:
    attn, mlp = block.attn, block.mlp
    attention = _norm(block.ln_1), _linear(attn.c_attn), _linear(attn.c_proj)
    return *attention, _norm(block.ln_2), _linear(mlp.c_fc), _linear(mlp.c_proj)


def _norm(norm: Any) -> tuple[Any, Any]:
    return _array(norm.weight), _array(norm.bias, np.zeros, len(norm.weight))


def _linear(linear: Any) -> tuple[Any, Any, Any]:
    weight, scale = linear.weight, getattr(linear, "scale", None)
    bits = weight.view(torch.uint16) if weight.dtype == torch.bfloat16 else weight
    return _array(bits), _array(scale, np.ones, len(weight)), _array(linear.bias, np.zeros, len(weight))


def _array(tensor: Tensor | None, fill: Callable[..., Any] = np.zeros, n: int = 0) -> Any:
    """The tensor's own memory as a numpy array; where there is none, n numbers."""
    return fill(n, np.float32) if tensor is None else tensor.detach().numpy()
