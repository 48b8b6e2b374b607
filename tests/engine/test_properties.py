"""Options, shapes, dtypes and layouts drawn jointly: small calls against the oracle, larger ones,
which cross the sides of tiles and stripes, against the dense reference."""

import torch
from cases import Call, normal
from hypothesis import given
from hypothesis import strategies as st
from strategies import SMALL, TILED, calls

SINGLE = (torch.float32, torch.bfloat16, torch.float16)


def largest_similarity(call: Call) -> float:
    if call.options.get("normalize", True):
        return 1.0
    rows = [x.detach().double() for x in (call.query, call.key, call.negatives) if x is not None]
    return max(1.0, *(x.norm(dim=-1).max().item() ** 2 for x in rows))


def tolerance(call: Call) -> float:
    """A few ulps of the largest logit, in the dtype that sums are kept in."""
    wide = torch.promote_types(call.query.dtype, torch.float32)
    largest = largest_similarity(call) / call.options["temperature"].item()
    return 32 * torch.finfo(wide).eps * (1 + largest)


def directions(call: Call) -> dict[str, torch.Tensor]:
    return {
        name: normal(*leaf.shape, seed=200 + i)
        for i, (name, leaf) in enumerate(call.leaves.items())
    }


def check_slope(name, leaf, gradient, direction, expected, call, relative):
    """<gradient, direction> up to the rounding of its terms and of those that cancel in them."""
    along = gradient.double() * direction
    terms = along.abs().sum().item() + abs(expected)
    temperature = call.options["temperature"].item()
    if leaf.dim() == 0:
        terms += largest_similarity(call) / temperature**2
    else:
        norms = leaf.detach().double().norm(dim=-1, keepdim=True)
        unit = (direction.abs() / norms).sum().item()
        terms += unit * largest_similarity(call) / temperature
    # Kernels may round the logits' gradients to 16-bit inputs' dtype.
    rounding = max(torch.finfo(x.dtype).eps for x in (gradient, call.query))
    allowed = (relative + 2 * rounding) * terms
    allowed += torch.finfo(gradient.dtype).tiny * direction.abs().sum().item()
    assert abs(along.sum().item() - expected) <= allowed, (name, along.sum().item(), expected)


def check_against_oracle(call: Call, backend: str, **more):
    relative = tolerance(call)
    loss = call.loss(backend=backend, **more)
    expected = torch.as_tensor(call.oracle(), dtype=torch.float64)
    assert loss.shape == expected.shape
    assert (loss.detach() - expected).abs().max() <= relative * (
        len(call.query) + expected.abs().max()
    )
    loss.sum().backward()
    reduction = call.options["reduction"]
    total = call.with_leaves(call.leaves)
    if reduction == "none":
        total.options["reduction"] = "sum"
    for name, direction in directions(call).items():
        leaf = call.leaves[name]
        slope = total.derivative({name: direction})
        check_slope(name, leaf, leaf.grad, direction, slope, call, relative)


@given(call=calls())
def test_small_calls(call, backend):
    check_against_oracle(call, backend)


@given(call=calls(sizes=(5, 17), widths=(3, 8)), workspace=st.sampled_from([1, 256, 4096]))
def test_small_workspaces(call, workspace, bounded_backend):
    check_against_oracle(call, bounded_backend, workspace_bytes=workspace)


@given(
    call=calls(sizes=TILED, widths=(2, 15, 16, 17, 64, 65, 130)),
    workspace=st.sampled_from([1, 1 << 16, None]),
)
def test_calls_across_tiles(call, workspace, bounded_backend):
    double = call.with_leaves(
        {n: x.detach().double().requires_grad_() for n, x in call.leaves.items()}
    )
    expected = double.loss(backend="reference")
    expected.sum().backward()
    relative = tolerance(call)
    loss = call.loss(backend=bounded_backend, workspace_bytes=workspace)
    difference = (loss.detach() - expected.detach()).abs().max()
    assert difference <= relative * (len(call.query) + expected.abs().max())
    loss.sum().backward()
    for name, direction in directions(call).items():
        leaf = call.leaves[name]
        slope = (double.leaves[name].grad * direction).sum().item()
        check_slope(name, leaf, leaf.grad, direction, slope, call, relative)


@given(call=calls(sizes=SMALL[:6], dtypes=SINGLE))
def test_result_dtypes(call, backend):
    loss = call.loss(backend=backend)
    assert loss.dtype == torch.float32
    loss.sum().backward()
    for leaf in call.leaves.values():
        assert leaf.grad.dtype == leaf.dtype
        assert leaf.grad.shape == leaf.shape
