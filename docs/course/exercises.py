"""The checks of the exercises: `check("6.1", attention_weights)` prints what is right, or a hint.

A check calls the function with small arguments and compares what comes back with a plain reference.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Hint(Exception):
    """What is not right yet, in one line."""


def check(number: str, function: Callable[..., Any]) -> None:
    """Print whether `function` solves exercise `number`."""
    try:
        with torch.random.fork_rng():  # the chapter's random numbers stay as they are
            torch.manual_seed(0)
            CHECKS[number](function)
    except Hint as hint:
        print(f"{number}: {hint}")
    except Exception as error:  # the student's function may raise anything
        print(f"{number}: raises {type(error).__name__}: {error}")
    else:
        print(f"{number}: right")


def same(got: Any, wanted: Any, letters: str = "", what: str = "the result") -> None:
    """Raise a Hint unless `got` is `wanted`; a tensor's shape first, with its `letters`."""
    if got is None:
        raise Hint("returns nothing yet")
    if not isinstance(wanted, Tensor):
        close = (
            isinstance(got, int | float)
            and isinstance(wanted, float)
            and math.isclose(got, wanted, abs_tol=1e-4)
        )
        if not (close or (type(got) is type(wanted) and got == wanted)):
            raise Hint(f"{what} is {got!r:.60}, for these arguments it should be {wanted!r:.60}")
        return
    if not isinstance(got, Tensor):
        raise Hint(f"{what} is a {type(got).__name__}, and should be a tensor")
    if got.shape != wanted.shape:
        shape = f"{letters} = {tuple(wanted.shape)}" if letters else f"{tuple(wanted.shape)}"
        raise Hint(
            f"{what} has the shape {tuple(got.shape)}, and should have {shape}{_shape_hint(got, wanted)}"
        )
    if got.dtype != wanted.dtype:
        raise Hint(f"{what} is {got.dtype}, and should be {wanted.dtype}")
    if not torch.allclose(got.double(), wanted.double(), atol=1e-4):
        raise Hint(f"{what} has the right shape and other numbers{_value_hint(got, wanted)}")


def _shape_hint(got: Tensor, wanted: Tensor) -> str:
    if sorted(got.shape) == sorted(wanted.shape):
        return ": the same sizes in another order, so transpose, or choose another dim"
    if got.dim() == wanted.dim() - 1:
        return ": a dimension is missing, as after a sum or an index without keepdim"
    if got.dim() == wanted.dim() + 1:
        return ": there is a dimension too many"
    if got.numel() == wanted.numel():
        return ": the same number of elements, so view or flatten"
    return ""


def _value_hint(got: Tensor, wanted: Tensor) -> str:
    if got.isnan().any() and not wanted.isnan().any():
        return ": some are NaN, as after 0 / 0 or inf - inf"
    if got.dim() >= 2 and got.shape[-1] == got.shape[-2] and torch.allclose(got.mT.double(), wanted.double()):
        return ": transposed, they are right"
    wrong = ~torch.isclose(got.double(), wanted.double(), atol=1e-4)
    return f": {int(wrong.sum())} of {wrong.numel()} differ, the first at {wrong.nonzero()[0].tolist()}"


def pair(got: Any, count: int) -> Any:
    """`got`, if it is a tuple of `count` things."""
    if got is None:
        raise Hint("returns nothing yet")
    if not isinstance(got, tuple) or len(got) != count:
        raise Hint(f"returns a {type(got).__name__}, and should return {count} things: return a, b")
    return got


# ------------------------------------------------------------------------------------ the exercises


def check_frequency_loss(function: Callable[..., Any]) -> None:
    """0.1"""
    train, val = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 2])
    same(function(train, val, 3), -(math.log(4 / 7) + math.log(1 / 7)) / 2)


def check_encode_bytes(function: Callable[..., Any]) -> None:
    """0.2"""
    same(function("Romeo"), [82, 111, 109, 101, 111])
    same(function("é"), [195, 169], what="for a character of two bytes the result")


def check_distances(function: Callable[..., Any]) -> None:
    """1.1"""
    same(function(3), torch.tensor([[0, -1, -2], [1, 0, -1], [2, 1, 0]]), "(T, T)")


def check_normalize(function: Callable[..., Any]) -> None:
    """1.2"""
    x = torch.randn(2, 3, 4)
    same(function(x), F.normalize(x, dim=-1), "(B, T, C)")


def check_broadcast(function: Callable[..., Any]) -> None:
    """1.3"""
    for a, b in [((5, 3, 4, 1), (3, 1, 1)), ((2, 4), (4,)), ((1,), (0,)), ((), (7,)), ((3,), (2, 1))]:
        same(function(a, b), tuple(torch.broadcast_shapes(a, b)), what=f"for {a} and {b} the result")
    for a, b in [((4, 3), (4,)), ((5, 2, 4, 1), (3, 1, 1)), ((0,), (2, 2))]:
        if (got := function(a, b)) is not None:
            raise Hint(f"for {a} and {b} the result is {got}, and should be None")


def check_merge(function: Callable[..., Any]) -> None:
    """2.1"""
    first, second, x = nn.Linear(3, 5), nn.Linear(5, 2), torch.randn(4, 3)
    weight, bias = pair(function(first, second), 2)
    same(weight, second.weight @ first.weight, "(out, in)", "the weight")
    same(bias, second.weight @ first.bias + second.bias, "(out,)", "the bias")
    same(x @ weight.T + bias, second(first(x)), "(4, out)", "x @ weight.T + bias")


def check_swap_halves(function: Callable[..., Any]) -> None:
    """2.2"""
    layer, x = function(6), torch.arange(6.0)
    if not isinstance(layer, nn.Linear):
        raise Hint("returns nothing yet" if layer is None else "should return a layer, nn.Linear")
    same(
        layer(x), torch.tensor([3.0, 4.0, 5.0, 0.0, 1.0, 2.0]), "(C,)", "the layer's output for 0, 1, ..., 5"
    )


def check_look_up(function: Callable[..., Any]) -> None:
    """3.1"""
    table, tokens = torch.randn(5, 3), torch.tensor([[4, 0, 4, 1], [2, 2, 3, 0]])
    same(function(table, tokens), F.embedding(tokens, table), "(B, T, C)")


def check_positions_from(function: Callable[..., Any]) -> None:
    """3.2"""
    same(function(torch.tensor([0, 5]), 3), torch.tensor([[0, 1, 2], [5, 6, 7]]), "(B, T)")


def check_to_batch(function: Callable[..., Any]) -> None:
    """4.1"""
    inputs, targets = pair(function([torch.arange(5), torch.arange(10, 15)]), 2)
    same(inputs, torch.tensor([[0, 1, 2, 3], [10, 11, 12, 13]]), "(B, T)", "inputs")
    same(targets, torch.tensor([[1, 2, 3, 4], [11, 12, 13, 14]]), "(B, T)", "targets")


def check_all_windows(function: Callable[..., Any]) -> None:
    """4.2"""
    ids = torch.arange(100, 107)
    same(function(ids, 3), ids.unfold(0, 4, 1), "(N - T, T + 1)")


def check_cross_entropy(function: Callable[..., Any]) -> None:
    """4.3"""
    logits, targets = torch.randn(2, 3, 5), torch.tensor([[0, 1, 2], [4, 3, 0]])
    same(function(logits, targets), F.cross_entropy(logits.flatten(0, 1), targets.flatten()), "a scalar, ()")


def check_window_mask(function: Callable[..., Any]) -> None:
    """5.1"""
    same(function(4, 2), torch.eye(4).bool() | torch.eye(5)[:4, 1:].bool(), "(T, T)")
    same(function(4, 9), torch.ones(4, 4).tril().bool(), "(T, T)", "with n above T the result")


def check_softmax(function: Callable[..., Any]) -> None:
    """5.2"""
    scores = torch.tensor([[[1.0, 2.0, -math.inf]], [[1000.0, 999.0, 0.0]]])
    same(function(scores), scores.softmax(dim=-1), "(..., S)")


def check_running_mean(function: Callable[..., Any]) -> None:
    """5.3"""
    x = torch.randn(2, 4, 3)
    same(function(x), torch.stack([x[:, : t + 1].mean(1) for t in range(4)], 1), "(B, T, C)")


def check_attention_weights(function: Callable[..., Any]) -> None:
    """6.1"""
    q, k, mask = torch.randn(2, 3, 4), torch.randn(2, 3, 4), torch.ones(3, 3).tril().bool()
    scores = (q @ k.mT / 2).masked_fill(~mask, -math.inf)
    same(function(q, k, mask), scores.softmax(dim=-1), "(B, T, S)")


def check_look_back(function: Callable[..., Any]) -> None:
    """6.2"""
    q, k = pair(function(5), 2)
    v, mask = torch.arange(5.0)[:, None], torch.ones(5, 5).tril().bool()
    weights = (q @ k.mT / math.sqrt(5)).masked_fill(~mask, -math.inf).softmax(dim=-1)
    same(
        (weights @ v).round(decimals=2),
        torch.tensor([0.0, 0.0, 1.0, 2.0, 3.0])[:, None],
        "(T, 1)",
        "attention to 0 .. 4",
    )


def check_sees(function: Callable[..., Any]) -> None:
    """6.3"""
    same(function(lambda x: x.cumsum(dim=1), 5, 2), torch.tensor([True, True, True, False, False]), "(T,)")
    same(function(lambda x: x.flip(1), 5, 1), torch.tensor([False, False, False, True, False]), "(T,)")


def check_heads(function: Callable[..., Any]) -> None:
    """7.1"""
    q, k, v = torch.randn(3, 2, 4, 6)
    mask = torch.ones(4, 4).tril().bool()
    split = [t.view(2, 4, 3, 2).transpose(1, 2) for t in (q, k, v)]
    wanted = F.scaled_dot_product_attention(*split, attn_mask=mask).transpose(1, 2).flatten(2)
    same(function(q, k, v, mask, 3), wanted, "(B, T, C)")


def check_block_parameters(function: Callable[..., Any]) -> None:
    """7.2"""
    same(function(8), 12 * 64 + 13 * 8)


def check_gpt_parameters(function: Callable[..., Any]) -> None:
    """8.1"""
    same(function(61, 2, 64, 32), 106048)
    same(function(50257, 12, 768, 1024), 124439808)


def check_loss_of_lead(function: Callable[..., Any]) -> None:
    """8.2"""
    right, wrong = pair(function(2.0, 61), 2)
    same(right, math.log(1 + 60 * math.exp(-2.0)), what="the loss where it comes")
    same(wrong, math.log(60 + math.exp(2.0)), what="the loss where another comes")


def check_accumulate(function: Callable[..., Any]) -> None:
    """9.1"""
    x, y = torch.randn(6, 3), torch.randn(6, 1)
    layer = nn.Linear(3, 1)
    function(layer, x, y, 3)
    if layer.weight.grad is None:
        raise Hint("there is no gradient yet: call backward for each part")
    got = layer.weight.grad.clone()
    layer.zero_grad()
    F.mse_loss(layer(x), y).backward()
    same(got, layer.weight.grad, "(1, 3)", "the weight's gradient")


def check_cosine(function: Callable[..., Any]) -> None:
    """9.2"""
    for step, wanted in [(1, 0.1), (10, 1.0), (55, 0.5), (100, 0.0)]:
        same(
            float(function(step, 10, 100)),
            wanted,
            what=f"at step {step} of 100, after 10 of warm-up, the factor",
        )


def check_clip(function: Callable[..., Any]) -> None:
    """9.3"""
    gradients = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]
    clipped = function(gradients, 1.0)
    if clipped is None:
        raise Hint("returns nothing yet")
    same(clipped[0], torch.tensor([0.6, 0.0]), "(2,)", "with the common norm 5, the first gradient")
    same(clipped[1], torch.tensor([[0.8]]), "(1, 1)", "the second gradient")
    same(function([torch.tensor([0.3])], 1.0)[0], torch.tensor([0.3]), "(1,)", "a gradient below the limit")


def check_top_k(function: Callable[..., Any]) -> None:
    """10.1"""
    logits = torch.tensor([[1.0, 3.0, 2.0, 0.0], [0.0, 1.0, 2.0, 3.0]])
    wanted = torch.tensor([[0, 1, 1, 0], [0, 0, 1, 1]]).bool()
    got = function(logits, 2)
    same(
        None if got is None else got.exp(),
        logits.masked_fill(~wanted, -math.inf).exp(),
        "(B, V)",
        "exp of the result",
    )


def check_perplexity(function: Callable[..., Any]) -> None:
    """10.2"""
    logits, targets = torch.zeros(2, 3, 7), torch.zeros(2, 3, dtype=torch.int64)
    same(function(logits, targets), 7.0)


def check_mask_rows(function: Callable[..., Any]) -> None:
    """11.1"""
    same(function(2, 5), torch.ones(5, 5).tril().bool()[3:], "(T, S)")
    same(function(1, 3), torch.ones(1, 3).bool(), "(T, S)", "for one new token the mask")


def check_cache_numbers(function: Callable[..., Any]) -> None:
    """11.2"""
    same(function(12, 768, 1024), 2 * 12 * 768 * 1024)


def check_transpose_names(function: Callable[..., Any]) -> None:
    """12.1"""
    state = {
        "c_fc.weight": torch.randn(8, 2),
        "ln_1.weight": torch.randn(2),
        "token_embedding.weight": torch.randn(5, 2),
    }
    got = function(state)
    if got is None:
        raise Hint("returns nothing yet")
    same(got["c_fc.weight"], state["c_fc.weight"].T, "(in, out)", "c_fc.weight")
    same(got["ln_1.weight"], state["ln_1.weight"], "(C,)", "ln_1.weight")
    same(got["token_embedding.weight"], state["token_embedding.weight"], "(V, C)", "token_embedding.weight")


CHECKS: dict[str, Callable[[Callable[..., Any]], None]] = {
    value.__doc__ or "": value for name, value in list(globals().items()) if name.startswith("check_")
}
