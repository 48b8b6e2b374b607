"""MaxSim on every backend: the dense formula in float64, masks, ties, and what is not finite."""

from __future__ import annotations

import pytest
import torch

import contrastive_ops as co
from contrastive_ops.engine import extension, tokens

ISAS = extension.load()[0].available_isas() if extension.load()[0] else []
# (N, M, Lq, Ld, D): off every edge of a micro-kernel, one of everything, longer than a chunk.
SHAPES = [(3, 4, 5, 7, 9), (9, 5, 33, 40, 130), (1, 2, 1, 1, 2), (2, 3, 600, 13, 16)]
EXACT = {
    torch.float64: (1e-12, 1e-12),
    torch.float32: (2e-6, 1e-5),
    torch.bfloat16: (2e-6, 8e-3),
    torch.float16: (2e-6, 1e-3),
}


def problem(shape, dtype=torch.float64, masked=True):
    n, m, lq, ld, d = shape
    query, key = torch.randn(n, lq, d).to(dtype), torch.randn(m, ld, d).to(dtype)
    if not masked:
        return query, key, None, None
    query_mask, key_mask = torch.rand(n, lq) > 0.3, torch.rand(m, ld) > 0.3
    query_mask[0], key_mask[0] = True, True
    query_mask[1:2], key_mask[1:2] = False, False
    return query, key, query_mask, key_mask


def solved(query, key, *masks, **options):
    leaves = [query.clone().requires_grad_(), key.clone().requires_grad_()]
    scores = co.token_similarity(*leaves, *masks, **options)
    torch.manual_seed(1)
    seed = torch.randn(scores.shape, dtype=torch.float64).to(scores.dtype)
    return [scores.detach(), *torch.autograd.grad(scores, leaves, seed)]


def check(found, expected, dtype):
    for x, y, tolerance in zip(
        found, expected, EXACT[dtype][:1] + EXACT[dtype][1:] * 2, strict=True
    ):
        # A row of one element has a direction that nothing turns: rounding is all there is.
        error = (x.double() - y.double()).abs().max() / y.double().abs().max().clamp(min=1e-3)
        assert error < tolerance


@pytest.mark.parametrize("dtype", list(EXACT), ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dense_formula(shape, dtype, bounded_backend):
    for masked in (False, True):
        for normalize in (False, True):
            query, key, *masks = problem(shape, dtype, masked)
            for aggregate in ("sum", "mean", "two_sided_mean"):
                options = {"aggregate": aggregate, "normalize": normalize}
                expected = solved(
                    query.double(), key.double(), *masks, backend="reference", **options
                )
                check(
                    solved(query, key, *masks, backend=bounded_backend, **options), expected, dtype
                )


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set(isa):
    kernel = extension.load()[0]
    kernel.select_isa(isa)
    try:
        for dtype in EXACT:
            query, key, *masks = problem(SHAPES[1], dtype)
            expected = solved(query.double(), key.double(), *masks, backend="reference")
            check(solved(query, key, *masks, backend="cpu"), expected, dtype)
            query[2, 3], key[3, 1, 5] = torch.inf, torch.nan
            scores = co.token_similarity(query, key, backend="cpu")
            wrong = torch.zeros(9, 5, dtype=torch.bool)
            wrong[2] = wrong[:, 3] = True
            assert torch.equal(scores.isnan(), wrong)
    finally:
        kernel.select_isa("")


def test_masked_tokens_may_be_anything(backend):
    query, key, *masks = problem(SHAPES[0], torch.float32)
    expected = solved(query, key, *masks, backend=backend)
    query[~masks[0]], key[~masks[1]] = torch.nan, -torch.inf
    found = solved(query, key, *masks, backend=backend)
    for x, y in zip(found, expected, strict=True):
        assert torch.equal(x, y)
    assert bool((found[0][1] == 0).all())
    assert bool((found[0][:, 1] == 0).all())
    assert bool((found[1][~masks[0]] == 0).all())
    assert bool((found[2][~masks[1]] == 0).all())


def test_the_first_of_equals_has_the_gradient(backend):
    # Whole numbers: no order of summation tells equal rows apart.
    query, key = torch.randint(-3, 4, (4, 5, 8)).float(), torch.randint(-3, 4, (3, 30, 8)).float()
    key[:, 20:] = key[:, 5:15]
    grad = solved(query, key, normalize=False, backend=backend)[2]
    assert bool((grad[:, 20:] == 0).all())
    assert bool((grad[:, 5:15] != 0).any())


def test_values_that_are_not_finite_are_those_of_dense_pytorch(bounded_backend):
    query, key, *_ = problem((5, 6, 4, 27, 40), torch.float32)
    query[0], key[1, 3], key[2] = query[0] * 1e30, key[1, 3] * 1e30, key[2] * -1e25
    key[3, 2, 1], query[4, 1, 0] = torch.nan, torch.inf
    dense = torch.einsum("nid,mjd->nmij", query, key).amax(3).sum(2)
    found = co.token_similarity(query, key, normalize=False, backend=bounded_backend)
    assert bool(dense[:, 3].isnan().all())
    assert bool((dense == torch.inf).any())
    assert torch.equal(dense.isnan(), found.isnan())
    torch.testing.assert_close(found, dense, rtol=1e-4, atol=1e-3, equal_nan=True)


def test_zero_rows_and_extreme_norms(bounded_backend):
    query, key, *_ = problem(SHAPES[1], torch.float32, masked=False)
    plain = solved(query, key, backend=bounded_backend)
    scale = torch.tensor([1e-18, 1e18, 1.0]).repeat(11)
    scaled = solved(query * scale[:, None], key, backend=bounded_backend)
    torch.testing.assert_close(scaled[0], plain[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scaled[1] * scale[:, None], plain[1], rtol=1e-4, atol=1e-5)
    query[2, 4], key[0] = 0, 0
    found = solved(query, key, backend=bounded_backend)
    assert all(bool(x.isfinite().all()) for x in found)
    assert bool((found[0][:, 0] == 0).all())
    assert bool((found[1][2, 4] == 0).all())
    assert bool((found[2][0] == 0).all())


def test_the_same_bits_at_every_thread_count(cpu_kernel, restored_threads):
    for dtype in EXACT:
        query, key, *masks = problem((40, 7, 20, 50, 33), dtype)
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(solved(query, key, *masks, workspace_bytes=1 << 16, backend="cpu"))
        whole = solved(query, key, *masks, backend="cpu")
        for other in (*found[1:], whole):
            assert all(torch.equal(x, y) for x, y in zip(found[0], other, strict=True))


def test_layouts_and_one_tensor_in_both_roles(bounded_backend):
    query, key, *masks = problem(SHAPES[1])
    expected = solved(query, key, *masks, backend=bounded_backend)
    strided = (query.transpose(0, 1).contiguous().transpose(0, 1), key.mT.contiguous().mT)
    wide = [mask.repeat_interleave(2, 1)[:, ::2] for mask in masks]
    for x, y in zip(solved(*strided, *wide, backend=bounded_backend), expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-13, atol=1e-14)
    x = torch.randn(4, 3, 6, dtype=torch.float64, requires_grad=True)
    dense = co.token_similarity(x, x, normalize=False, backend="reference")
    ours = co.token_similarity(x, x, normalize=False, backend=bounded_backend)
    (grad,) = torch.autograd.grad(ours.square().sum(), x, create_graph=True)
    (wanted,) = torch.autograd.grad(dense.square().sum(), x, create_graph=True)
    torch.testing.assert_close(grad, wanted)
    again = [torch.autograd.grad(g.square().sum(), x)[0] for g in (grad, wanted)]
    torch.testing.assert_close(*again)


@pytest.mark.parametrize("aggregate", ["sum", "two_sided_mean"])
def test_derivatives(aggregate, bounded_backend):
    query, key, *masks = problem(SHAPES[0])

    def scores(q, k):
        return co.token_similarity(q, k, *masks, aggregate=aggregate, backend=bounded_backend)

    leaves = (query.requires_grad_(), key.requires_grad_())
    assert torch.autograd.gradcheck(scores, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(scores, leaves, fast_mode=True)
    whole = torch.func.grad(lambda q: scores(q, key).square().sum())(query)
    (expected,) = torch.autograd.grad(scores(*leaves).square().sum(), query)
    torch.testing.assert_close(whole, expected)
    tangent = torch.ones_like(query)
    _, forward_mode = torch.func.jvp(lambda q: scores(q, key), (query,), (tangent,))
    _, pull = torch.func.vjp(lambda q: scores(q, key), query)
    torch.testing.assert_close(forward_mode.sum(), (pull(torch.ones(3, 4).double())[0]).sum())


def test_operators(bounded_backend):
    query, key, *masks = problem(SHAPES[0])
    arguments = [bounded_backend, query, key, *masks, True, True, 1 << 20]
    namespace = torch.ops.contrastive_ops
    torch.library.opcheck(namespace.token_similarity.default, arguments)
    scores, where = namespace.token_similarity(*arguments)
    rest = [torch.ones_like(scores), where, [True, False]]
    torch.library.opcheck(namespace.token_similarity_backward.default, [*arguments, *rest])


def test_compiled(bounded_backend):
    @torch.compile(backend="aot_eager", fullgraph=True)
    def loss(q, k, mask):
        return co.score_nce(co.token_similarity(q, k, key_mask=mask, backend=bounded_backend))

    query, key, _, mask = problem((4, 4, 5, 7, 9))
    found = []
    for function in (loss, loss._torchdynamo_orig_callable):
        leaves = [query.clone().requires_grad_(), key.clone().requires_grad_()]
        found.append(torch.autograd.grad(function(*leaves, mask), leaves))
    torch.testing.assert_close(found[0], found[1])


def test_a_damaged_index_is_refused(cpu_kernel):
    query, key, *_ = problem(SHAPES[0])
    _, where = extension.load()[0].token_similarity_forward(query, key, None, None, False, True, 1)
    where[0, 0, 0] = 7
    one = torch.ones(3, 4, dtype=torch.float64)
    arguments = ["cpu", query, key, None, None, *tokens.TokenProblem(), one, where, [True, True]]
    with pytest.raises(ValueError, match="out of range"):
        torch.ops.contrastive_ops.token_similarity_backward(*arguments)
