"""Mined triplets on the C++ kernels: which rows are chosen, at every instruction set."""

from __future__ import annotations

import pytest
import torch

import contrastive_ops as co
from contrastive_ops.engine import extension, neighbours
from contrastive_ops.objectives import triplet

ISAS = extension.load()[0].available_isas() if extension.load()[0] else []
ROOM = 1 << 26
pytestmark = pytest.mark.usefixtures("cpu_kernel")


@pytest.fixture(params=ISAS)
def isa(request):
    extension.load()[0].select_isa(request.param)
    yield request.param
    extension.load()[0].select_isa("")


def whole_rows(n, dim, dtype):
    """Whole numbers: every order of summation is exact, so that ties are ties."""
    return torch.randint(-3, 4, (n, dim)).to(dtype)


def densely(x, label, bound=None, cosine=False):
    """By the N x N distances, in float64: the first of equals."""
    x = x.double()
    d = 1 - x @ x.T if cosine else torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    d = d.masked_fill(label[:, None] == label, torch.nan)
    apart = ~d.isnan()
    if bound is None:
        d = d.masked_fill(~apart, torch.inf)
        return torch.where(apart.any(1), d.argmin(1), -1), None
    found = []
    limits = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    limits = 1 - x @ x.T if cosine else limits
    for slot in bound.long():
        limit = limits.gather(1, slot.clamp(min=0)[:, None])
        beyond = apart & (d > limit) & (slot >= 0)[:, None]
        index = d.masked_fill(~beyond, torch.inf).argmin(1)
        found.append(torch.where(beyond.any(1), index, -1))
    farthest = d.masked_fill(~apart, -torch.inf).argmax(1)
    return torch.stack(found), torch.where(apart.any(1), farthest, -1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("n", "dim", "classes"), [(230, 17, 40), (97, 5, 97), (5, 3, 1), (1, 1, 1)]
)
def test_the_first_of_the_nearest_is_chosen(isa, n, dim, classes, dtype):
    x, label = whole_rows(n, dim, dtype), torch.randint(0, classes, (n,)).int()
    for cosine in (False, True):
        options = {"cosine": cosine, "workspace_bytes": ROOM}
        found, _ = neighbours.closest_of_another_label(x, label, **options)
        assert torch.equal(found[0].long(), densely(x, label, cosine=cosine)[0])
        for slots in (1, 6):
            bound = torch.randint(-1, n, (slots, n)).int()
            found, farthest = neighbours.closest_of_another_label(x, label, bound, **options)
            expected = densely(x, label, bound, cosine)
            assert torch.equal(found.long(), expected[0])
            assert torch.equal(farthest.long(), expected[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_distances_and_their_gradient(isa, dtype):
    x = torch.randn(50, 37, dtype=dtype, requires_grad=True)
    left, right = torch.randint(0, 50, (2, 700))
    wide = x.detach().double().requires_grad_()
    expected = (wide[left] - wide[right]).square().sum(1)
    found = neighbours.squared_distances(x, left, right)
    seed = torch.randn(700, dtype=torch.float64)
    (grad,) = torch.autograd.grad(found, x, seed.to(dtype))
    (exact,) = torch.autograd.grad(expected, wide, seed)
    tolerance = 1e-12 if dtype == torch.float64 else 3e-6
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=0)
    assert (grad - exact).abs().max() < tolerance * exact.abs().max()


def test_derivatives_of_distances():
    x = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    left, right = torch.tensor([0, 1, 1, 5, 2]), torch.tensor([3, 0, 1, 4, 3])

    def distances(x):
        return neighbours.squared_distances(x, left, right)

    assert torch.autograd.gradcheck(distances, x)
    assert torch.autograd.gradgradcheck(distances, x)


def test_the_same_bits_at_every_thread_count(restored_threads):
    label = torch.randint(0, 100, (400,))
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x = torch.randn(400, 24).to(dtype).requires_grad_()
        for mining in ("hard", "semi-hard", "easy"):
            found = []
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                loss = co.triplet_margin(x, label, mining=mining)
                found.append([loss, *torch.autograd.grad(loss, x)])
            for other in found[1:]:
                assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("distance", ["sq_l2", "l2", "cosine"])
@pytest.mark.parametrize("mining", ["hard", "semi-hard", "easy"])
def test_plain_pytorch_agrees(mining, distance, monkeypatch):
    """Also of classes too large for the kernel."""
    x = torch.randn(150, 12, dtype=torch.float64)
    for label in (torch.randint(0, 30, (150,)), torch.arange(150) // 75):
        found = []
        for backend in ("cpu", "torch"):
            monkeypatch.setenv("CONTRASTIVE_OPS_BACKEND", backend)
            leaf = x.clone().requires_grad_()
            options = {"mining": mining, "distance": distance, "reduction": "nonzero"}
            loss = co.triplet_margin(leaf, label, **options)
            found.append([loss, *torch.autograd.grad(loss, leaf)])
        torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-11)


def test_a_class_at_the_limit_takes_the_kernel(monkeypatch):
    x = torch.randn(3 * triplet.MOST, 8, dtype=torch.float64)
    label = torch.arange(len(x)) // triplet.MOST
    exact = co.triplet_margin(x, label, backend="reference")
    monkeypatch.setattr(triplet, "counted_stripe_losses", None)
    torch.testing.assert_close(co.triplet_margin(x, label, backend="cpu"), exact)


def test_nan_is_not_passed_over():
    x = torch.randn(40, 6)
    x[7, 2] = torch.nan
    for mining in ("hard", "semi-hard", "easy"):
        for normalize in (True, False):
            loss = co.triplet_margin(x, torch.arange(40) // 4, mining=mining, normalize=normalize)
            assert bool(loss.isnan())


def test_a_damaged_index_is_refused():
    x, label = torch.randn(4, 3), torch.zeros(4, dtype=torch.int32)
    with pytest.raises(ValueError, match="out of range"):
        neighbours.closest_of_another_label(
            x, label, torch.full((1, 4), 4, dtype=torch.int32), workspace_bytes=ROOM
        )
    with pytest.raises(ValueError, match="out of range"):
        neighbours.squared_distances(x, torch.tensor([0]), torch.tensor([4]))


@pytest.mark.parametrize("mining", ["hard", "easy"])
@pytest.mark.parametrize("most", [triplet.MOST, 1])
def test_zero_rows_are_chosen_by_their_cosine(mining, bounded_backend, most, monkeypatch):
    """Their cosine is 0 with everything; their distance is that of a cosine of 0.5."""
    monkeypatch.setattr(triplet, "MOST", most)
    x = torch.nn.functional.normalize(torch.randn(24, 6, dtype=torch.float64) + 0.5, dim=1)
    x[::3] = 0
    label = torch.arange(24) % 4
    d = 1 - x @ x.T
    same = label.unsqueeze(1) == label
    own = same & ~torch.eye(24, dtype=torch.bool)
    near = (
        d.masked_fill(~own, -torch.inf).amax(1)
        if mining == "hard"
        else d.masked_fill(~own, torch.inf).amin(1)
    )
    expected = (near - d.masked_fill(same, torch.inf).amin(1) + 0.2).clamp(min=0).mean()
    found = co.triplet_margin(x, label, mining=mining, distance="cosine", backend=bounded_backend)
    torch.testing.assert_close(found, expected)
