"""Parameter groups, AdamW, Muon, and the learning rate as a function of the step."""

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from gptmini.config import OptimConfig
from gptmini.distributed.context import copy_full_, gather_like, shard_like, to_local

Groups = Iterable[tuple[list[nn.Parameter], float]]  # parameters, and their weight decay


def build_optimizers(
    model: nn.Module, config: OptimConfig, dtype: torch.dtype = torch.float32
) -> list["Optimizer"]:
    """The optimizers of `config` over the model's parameters, each parameter in exactly one group.

    `dtype` is that of the fastest matrix product on this hardware, for Muon.
    """
    # Muon is for matrices that multiply. The rows of an embedding are looked up, so embeddings stay with
    # AdamW, as do the vectors (biases, LayerNorm).
    muon: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, p in model.named_parameters():
        is_block_matrix = "blocks." in name and p.dim() == 2
        (muon if config.optimizer == "muon" and is_block_matrix else rest).append(p)
    # Weight decay keeps matrices from growing without need. LayerNorm gains and biases set scales and
    # offsets, which have no reason to be near zero, so vectors do not decay.
    groups = [
        ([p for p in rest if p.dim() >= 2], config.weight_decay),
        ([p for p in rest if p.dim() < 2], 0.0),
    ]
    optimizers: list[Optimizer] = [AdamW(groups, config.lr, config.betas)]
    if muon:
        optimizers.append(Muon([(muon, config.weight_decay)], config.muon_lr, config.muon_momentum, dtype))
    return optimizers


class Optimizer(ABC):
    """Parameter groups, and a state of named tensors for each parameter, laid out as in torch.optim.

    Not torch.optim's own base class: it imports the front end of torch.compile, which takes longer than many
    a first training step.
    """

    def __init__(self, groups: Groups, lr: float) -> None:
        self.param_groups: list[dict[str, Any]] = [
            {"params": params, "weight_decay": weight_decay, "lr": lr, "peak_lr": lr}
            for params, weight_decay in groups
            if params
        ]
        self.state: dict[Tensor, dict[str, Tensor]] = {}

    @torch.no_grad()
    def step(self, skip: Tensor | None = None) -> None:
        """One update from the parameters' gradients.

        Where `skip`, a bool () on their device, is true, nothing changes, whatever the gradients are: a GPU
        decides that by itself, without a host sync.
        """
        for group in self.param_groups:
            for p in group["params"]:
                if p not in self.state:
                    self.state[p] = self.initial_state(p)
            self._update(group, skip)

    @abstractmethod
    def initial_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """The state of a parameter before its first update."""

    @abstractmethod
    def _update(self, group: dict[str, Any], skip: Tensor | None) -> None:
        """Update the parameters of one group in place."""


class AdamW(Optimizer):
    """AdamW (Loshchilov & Hutter, 2019), by torch's fused kernel: one pass over a group, not several.

    Each parameter moves by its average gradient over the root of its average squared gradient, so that all
    move about equally far. `betas` are the decay rates of the two averages.
    """

    def __init__(self, groups: Groups, lr: float, betas: tuple[float, float]) -> None:
        super().__init__(groups, lr)
        self.betas = betas

    def initial_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """The step count, and the averages of the gradient and of its square."""
        return {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }

    def _update(self, group: dict[str, Any], skip: Tensor | None) -> None:
        states = [self.state[p] for p in group["params"]]
        adamw(
            [to_local(p) for p in group["params"]],
            [to_local(p.grad) for p in group["params"]],
            [to_local(state["exp_avg"]) for state in states],
            [to_local(state["exp_avg_sq"]) for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            found_inf=None if skip is None else skip.float(),  # 1: the kernel changes nothing
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=1e-8,
            maximize=False,
        )


class Muon(Optimizer):
    """SGD with momentum whose update is orthogonalised: it moves every direction of a matrix equally far.

    A gradient matrix is dominated by a few directions (its largest singular values); equal singular values
    let the rare directions learn too, and take a step whose size is known beforehand.

    Muon (Jordan et al., 2024), as `torch.optim.Muon` computes it, with two differences that make it fast at
    these sizes: matrices of one shape go through Newton-Schulz together, and in `dtype`, for hardware that
    has no fast bfloat16 product (torch's always rounds to bfloat16). The tests hold it to torch's result.
    """

    def __init__(self, groups: Groups, lr: float, momentum: float, dtype: torch.dtype) -> None:
        super().__init__(groups, lr)
        self.momentum, self.dtype = momentum, dtype

    def initial_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """The average of the gradient."""
        return {"momentum_buffer": torch.zeros_like(parameter)}

    def _update(self, group: dict[str, Any], skip: Tensor | None) -> None:
        lr, weight_decay = group["lr"], group["weight_decay"]
        by_shape: dict[tuple[int, ...], list[Any]] = defaultdict(list)  # a matrix and its transpose are one
        for p in group["params"]:
            by_shape[tuple(sorted(p.shape))].append(p)
        for same in by_shape.values():
            gradients = [to_local(p.grad) for p in same]
            buffers = [to_local(self.state[p]["momentum_buffer"]) for p in same]
            if skip is not None:  # averaging a buffer with itself leaves it as it is
                gradients = [torch.where(skip, b, g) for b, g in zip(buffers, gradients, strict=True)]
            # Momentum, then Nesterov: look one step ahead.
            torch._foreach_lerp_(buffers, gradients, 1 - self.momentum)
            updates = torch._foreach_lerp(gradients, buffers, self.momentum)
            # Orthogonalise the full matrices, all of one shape at once: (N, rows, columns), rows <= columns.
            full = [gather_like(u, p) for u, p in zip(updates, same, strict=True)]
            wide = [u if u.shape[0] <= u.shape[1] else u.mT for u in full]
            moves = orthogonalize(torch.stack(wide), self.dtype)
            shrink = torch.full((), 1 - lr * weight_decay, device=moves.device)
            if skip is not None:
                moves, shrink = moves * ~skip, torch.where(skip, 1.0, shrink)
            # Decay the weights, then move them. A tall matrix spreads the same singular values over more
            # outputs, so it is scaled up until each output moves as far.
            torch._foreach_mul_([to_local(p) for p in same], shrink)
            for p, move in zip(same, moves, strict=True):
                rows, columns = p.shape
                scale = math.sqrt(max(1.0, rows / columns))
                to_local(p).add_(shard_like(move if rows <= columns else move.mT, p), alpha=-lr * scale)


def orthogonalize(matrices: Tensor, dtype: torch.dtype = torch.float32, steps: int = 5) -> Tensor:
    """Each of (N, rows, columns) with its singular values moved near 1, by Newton-Schulz iterations.

    The quintic's coefficients are Muon's: steepest at zero, so that small singular values grow in few steps;
    they end between about 0.7 and 1.2, which trains as well as exactly 1.

    Ten times as strong in one direction as in the other before, equally strong after:

    >>> squashed = torch.diag(torch.tensor([100.0, 10.0])).unsqueeze(0)
    >>> torch.linalg.svdvals(orthogonalize(squashed))[0].round(decimals=1)
    tensor([0.7000, 0.7000])
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    # Divided by its norm, no singular value is above 1, where the iteration would diverge.
    x = matrices / matrices.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    x = x.to(dtype)
    for _ in range(steps):
        # x <- a x + b (x x^T) x + c (x x^T)^2 x maps each singular value s to a s + b s^3 + c s^5.
        gram = x @ x.mT  # (N, rows, rows): cheapest where rows are the shorter side
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.to(matrices.dtype)


def learning_rate_factor(config: OptimConfig, step: int, max_steps: int) -> float:
    """The learning rate at `step`, counted from 1, as a fraction of its peak: warm up, then decay.

    >>> config = OptimConfig(schedule="linear", warmup_steps=2, min_lr_ratio=0.0)
    >>> [learning_rate_factor(config, step, max_steps=6) for step in range(1, 7)]
    [0.5, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    # Warm-up: the first gradients are large and AdamW's averages rest on few of them, so start small.
    if step <= config.warmup_steps:
        return step / config.warmup_steps
    # Decay: large steps find a good region, small ones settle in it.
    progress = (step - config.warmup_steps) / max(1, max_steps - config.warmup_steps)  # in (0, 1]
    match config.schedule:
        case "cosine":
            fall = 0.5 * (1 - math.cos(math.pi * progress))
        case "linear":
            fall = progress
        case "wsd":  # warm-up, stable, decay: the last fifth of the run
            fall = max(0.0, (progress - 0.8) / 0.2)
        case "constant":
            fall = 0.0
    return 1 - (1 - config.min_lr_ratio) * fall


def set_learning_rate(optimizers: Iterable[Optimizer], factor: float) -> None:
    """Give every parameter group `factor` times its peak rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = factor * group["peak_lr"]


def optimizer_tensors(model: nn.Module, optimizers: Iterable[Optimizer]) -> dict[str, Tensor]:
    """All optimizer state as tensors named `<parameter>/<quantity>`, such as `ln_f.weight/exp_avg`.

    In the model's order, whatever order the state was created in: equal states give equal files.
    """
    states: dict[Tensor, dict[str, Tensor]] = {}
    for optimizer in optimizers:
        states.update(optimizer.state)
    return {
        f"{name}/{quantity}": value
        for name, parameter in model.named_parameters()
        for quantity, value in states.get(parameter, {}).items()
    }


def load_optimizer_tensors(
    model: nn.Module, optimizers: Iterable[Optimizer], tensors: Mapping[str, Tensor]
) -> None:
    """Load what `optimizer_tensors` returned. Raises ValueError if it does not fit exactly."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    unused = set(tensors)
    for optimizer in optimizers:
        for p in (p for group in optimizer.param_groups for p in group["params"]):
            optimizer.state[p] = state = optimizer.initial_state(p)
            for quantity, initial in state.items():
                key = f"{names[p]}/{quantity}"
                value = tensors.get(key)
                if value is None or value.shape != initial.shape or value.dtype != initial.dtype:
                    raise ValueError(f"the saved optimizer state does not fit parameter {names[p]}")
                copy_full_(initial, value)
                unused.remove(key)
    if unused:
        raise ValueError(f"the saved optimizer state is of another model too: {min(unused)!r:.100}")
