"""Models that do not fit: parameters sharded over the ranks (FSDP2), activations recomputed.

A rank never holds more of a sharded model than its shard and one full tensor, also while the model is built:
DeferredInit records how each parameter is initialised, and replays that one parameter at a time.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from gptmini.config import GPTConfig
from gptmini.distributed.context import DistributedContext, copy_full_
from gptmini.model import GPT


def build_model(
    config: GPTConfig, distributed: DistributedContext, device: torch.device, dtype: torch.dtype
) -> GPT:
    """A GPT with random weights, the same for any number of ranks.

    A sharded one is on `device`, computes in `dtype`, and its parameters are DTensors; else it is a plain
    GPT(config).
    """
    if not distributed.sharded:
        return GPT(config)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # 1. Build on the meta device, which allocates nothing, and record each parameter's initialiser.
    with torch.device("meta"), DeferredInit() as deferred:
        model = GPT(config)
    initialisers = {name: deferred.initialisers[id(p)] for name, p in model.named_parameters()}

    # 2. Shard each block, then the rest: the embeddings and the last LayerNorm form the root's group.
    mesh = init_device_mesh(device.type, (distributed.world_size,))
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for module in (*model.blocks, model):
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)

    # 3. Allocate this rank's shards. to_empty splits tied weights.
    model.to_empty(device=device)
    model.lm_head.weight = model.token_embedding.weight

    # 4. Initialise: each full tensor is made on the CPU, and this rank keeps its part.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            copy_full_(parameter, initialisers[name]())
    return model


class DeferredInit(TorchFunctionMode):
    """Intercepts torch.nn.init: consumes the same random numbers, and records how to fill each tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.initialisers: dict[int, Callable[[], Tensor]] = {}  # by id(parameter): the last one counts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) != "torch.nn.init":
            return func(*args, **kwargs)
        tensor, *rest = (kwargs.pop("tensor"), *args) if "tensor" in kwargs else args
        state = torch.get_rng_state()

        def initialise() -> Tensor:
            torch.set_rng_state(state)
            return func(torch.empty(tensor.shape, device="cpu"), *rest, **kwargs)

        self.initialisers[id(tensor)] = initialise
        initialise()  # advances the random generator as an undeferred init would
        return tensor


def checkpoint_activations(model: GPT) -> None:
    """Store only each block's input for the backward pass, and recompute the rest of the block there.

    Activation memory falls to about one block's; a step computes a third more.
    """
    for block in model.blocks:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
