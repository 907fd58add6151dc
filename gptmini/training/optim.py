"""Parameter groups, AdamW, Muon, and the learning rate as a function of the step."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from gptmini.config import OptimConfig


def build_optimizers(model: nn.Module, config: OptimConfig) -> list[torch.optim.Optimizer]:
    """The optimizers of `config` over the model's parameters, each parameter in exactly one.

    AdamW (Loshchilov & Hutter, 2019) decays matrices, not vectors (biases, LayerNorm). Muon takes the
    matrices inside the blocks; embeddings, whose rows are looked up rather than multiplied, stay with AdamW.
    """
    muon = [
        p for name, p in model.named_parameters() if config.optimizer == "muon" and _is_block_matrix(name, p)
    ]
    rest = [p for p in model.parameters() if not any(p is m for m in muon)]
    groups = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
    ]
    # fused: one kernel for all parameters instead of several a parameter
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, betas=config.betas, fused=True)
    ]
    if muon:
        optimizers.append(Muon(muon, config.muon_lr, config.weight_decay, config.muon_momentum))
    return optimizers


def _is_block_matrix(name: str, parameter: Tensor) -> bool:
    return "blocks." in name and parameter.dim() == 2


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised: every direction of a matrix moves equally far.

    Muon (Jordan et al., 2024), as `torch.optim.Muon` computes it, with two differences that make it fast at
    these sizes: matrices of one shape go through Newton-Schulz together, and in float32 where the hardware
    has no fast bfloat16 product (torch's always rounds to bfloat16). The tests hold it to torch's result.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, weight_decay: float = 0.1, momentum: float = 0.95
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # closures are for line searches
        """One update from the parameters' gradients."""
        for group in self.param_groups:
            for parameters in _by_shape(group["params"]):
                self._update(parameters, group["lr"], group["weight_decay"], group["momentum"])

    def _update(self, parameters: list[Tensor], lr: float, weight_decay: float, momentum: float) -> None:
        """Move parameters of one shape, all at once."""
        updates = []
        for p in parameters:
            state = self.state[p]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(p)
            buffer = state["momentum_buffer"]
            assert p.grad is not None
            buffer.lerp_(p.grad, 1 - momentum)
            updates.append(p.grad.lerp(buffer, momentum))  # Nesterov: look one step ahead
        rows, columns = parameters[0].shape
        scale = math.sqrt(max(1.0, rows / columns))
        for p, update in zip(parameters, orthogonalize(torch.stack(updates)), strict=True):
            p.mul_(1 - lr * weight_decay).add_(update, alpha=-lr * scale)


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Each of (N, rows, columns) with its singular values moved near 1, by Newton-Schulz iterations.

    The quintic's coefficients are Muon's: steepest at zero, so that small singular values rise in few steps;
    they end between about 0.7 and 1.2, which trains as well as exactly 1.

    Ten times as strong in one direction as in the other before, equally strong after:

    >>> squashed = torch.diag(torch.tensor([100.0, 10.0])).unsqueeze(0)
    >>> torch.linalg.svdvals(orthogonalize(squashed))[0].round(decimals=1)
    tensor([0.7000, 0.7000])
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.bfloat16() if matrices.is_cuda else matrices  # (N, rows, columns)
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT  # the shorter side first: x x^T is the smaller product
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x if wide else x.mT).to(matrices.dtype)


def _by_shape(parameters: Iterable[Tensor]) -> list[list[Tensor]]:
    groups: dict[torch.Size, list[Tensor]] = {}
    for p in parameters:
        groups.setdefault(p.shape, []).append(p)
    return list(groups.values())


def learning_rate_factor(config: OptimConfig, step: int, max_steps: int) -> float:
    """The share of the peak learning rate at `step`, counted from 1.

    >>> config = OptimConfig(schedule="linear", warmup_steps=2, min_lr_ratio=0.0)
    >>> [learning_rate_factor(config, step, max_steps=6) for step in range(1, 7)]
    [0.5, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    if step <= config.warmup_steps:
        return step / config.warmup_steps
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


def set_learning_rate(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    """Give every parameter group `factor` times its peak rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = factor * group.setdefault("peak_lr", group["lr"])


def optimizer_tensors(model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """All optimizer state as tensors named `<parameter>/<quantity>`, such as `ln_f.weight/exp_avg`.

    In the model's order, not in that of the first update, which a resumed run does not make again.
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
    model: nn.Module, optimizers: Iterable[torch.optim.Optimizer], tensors: Mapping[str, Tensor]
) -> None:
    """Put back what `optimizer_tensors` took. Raises ValueError where it is not exactly that."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    states: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, quantity = key.rpartition("/")
        states.setdefault(name, {})[quantity] = value
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for p in group["params"]:
                state = states.pop(names[p], {})
                kept = (
                    {"momentum_buffer"} if isinstance(optimizer, Muon) else {"step", "exp_avg", "exp_avg_sq"}
                )
                shapes = {quantity: () if quantity == "step" else p.shape for quantity in kept}
                if shapes != {quantity: tuple(value.shape) for quantity, value in state.items()}:
                    raise ValueError(f"the saved optimizer state does not fit parameter {names[p]}")
                optimizer.state[p] = {quantity: value.to(p.device) for quantity, value in state.items()}
    if states:
        raise ValueError(f"the saved optimizer state is of another model too: {next(iter(states))!r:.100}")
