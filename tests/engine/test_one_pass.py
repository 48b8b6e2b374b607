"""What one pass of the CPU kernel serves beyond pairs of sets: one set against itself by half of
its matrix, prefixes of the rows by partial sums, and sums over pairs. On every instruction set."""

from functools import partial

import dense
import pytest
import torch
from cases import normal

import contrastive_ops as co
from contrastive_ops.engine import extension, lowering, ops
from contrastive_ops.engine.describe import describe
from contrastive_ops.engine.problem import Gradients, Operands, on_prefixes
from contrastive_ops.engine.softmax_ce import softmax_ce

DIMS = (70, 10, 33, 64)  # in any order; they end within a vector or between two
FORMULAS = {
    "one set": (co.nt_xent, dense.nt_xent, {}),
    "prefixes": (co.info_nce, dense.matryoshka, {"matryoshka_dims": DIMS}),
    "prefixes both ways": (
        co.info_nce,
        dense.matryoshka,
        {"matryoshka_dims": DIMS, "symmetric": True},
    ),
    "prefixes of one set": (
        co.nt_xent,
        partial(dense.matryoshka, loss=dense.nt_xent),
        {"matryoshka_dims": DIMS},
    ),
    "pairs": (co.sigmoid_loss, dense.sigmoid_loss, {"bias": -3.0}),
}
ISAS = extension.load()[0].available_isas() if extension.load()[0] else []


@pytest.fixture(params=ISAS)
def isa(request):
    kernel = extension.load()[0]
    kernel.select_isa(request.param)
    yield request.param
    kernel.select_isa("")


@pytest.fixture
def unaided(monkeypatch):
    """Nothing comes in parts or from the torch backend."""

    def refuse(*_):
        raise AssertionError("the kernel was not given the whole problem")

    for name in ("two_sets", "each_prefix", "reversed_problem"):
        monkeypatch.setattr(lowering, name, refuse)
    monkeypatch.setattr(lowering.chunked, "total", refuse)
    monkeypatch.setattr(lowering.chunked, "forward", refuse)


def related(n, m, dtype, seed, width=70):
    query, key = normal(n, width, seed=160 + 2 * seed), normal(m, width, seed=161 + 2 * seed)
    key[:n] += query
    return [query.to(dtype), key.to(dtype)]


@pytest.mark.parametrize("path", FORMULAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_rule(path, dtype, isa):
    """Of rows in several stripes and tiles, none of them full."""
    ours, formula, options = FORMULAS[path]
    rows = partial(related, 205, 205, dtype)
    dense.check_error_rule(rows, 0.1, "cpu", draws=2, ours=ours, formula=formula, **options)


@pytest.mark.parametrize("path", FORMULAS)
@pytest.mark.parametrize("temperature", [0.005, 5.0])
def test_error_rule_of_temperatures(path, temperature):
    """Where exponentials need maxima, and where everything counts."""
    ours, formula, options = FORMULAS[path]
    rows = partial(related, 77, 77, torch.float32)
    dense.check_error_rule(rows, temperature, "cpu", ours=ours, formula=formula, **options)


def rows(*shape: int, seed: int) -> torch.Tensor:
    return normal(*shape, seed=seed).requires_grad_()


def outcome(loss, leaves, backend, **options):
    fresh = [x.detach().clone().requires_grad_() for x in leaves]
    value = loss(*fresh, backend=backend, **options)
    weight = torch.linspace(-1, 2, value.numel(), dtype=value.dtype).view_as(value)
    (value * weight).sum().backward()
    return [value.detach(), *(x.grad for x in fresh)]


N = 131
LABELS = torch.arange(2 * N) % 40
IDS = torch.arange(N) % 90
KEY_IDS = torch.arange(N + 9) % 101
VIEWS = [normal(N, 70, seed=s) for s in (1, 2, 3)]
SETS = [VIEWS[0], torch.cat([VIEWS[0] + VIEWS[1], normal(9, 70, seed=4)])]
NEGATIVES = normal(37, 70, seed=5)
HARD = VIEWS[0].unsqueeze(1) + normal(N, 3, 70, seed=6)
LOG_WEIGHTS = normal(N, 40, seed=7).double()
LOG_WEIGHTS[2] = -torch.inf
LOG_WEIGHTS[0, 5] = -torch.inf
GUIDE = [x[:, :12].float() for x in (*SETS, NEGATIVES)]
POSITIVES = torch.stack([torch.arange(N), torch.arange(N) + 9 * (torch.arange(N) % 3 == 1)], 1)
POSITIVES[POSITIVES[:, 0] == POSITIVES[:, 1], 1] = -1
T = torch.tensor(0.3, dtype=torch.float64)
BIAS = torch.tensor(-1.5, dtype=torch.float64)


def views(*tensors, **options):
    return co.nt_xent(*tensors[:-1], temperature=tensors[-1], **options)


def pairs(query, key, temperature, bias, **options):
    return co.sigmoid_loss(query, key, temperature=temperature, bias=bias, **options)


def prefixes(*tensors, **options):
    return co.info_nce(*tensors[:-1], temperature=tensors[-1], matryoshka_dims=DIMS, **options)


STRICT = {"margin": 0.05, "false_negative_margin": 0.02, "label_smoothing": 0.1}
WEIGHTED = {"matryoshka_weights": (1.0, -0.3, 2.0, 0.5)}
KNOWN = {"query_ids": IDS, "key_ids": KEY_IDS}
CALLS = {
    "two views": (views, [*VIEWS[:2], T], {}),
    "three views": (views, [*VIEWS, T], STRICT),
    "dot products": (views, [*VIEWS[:2], T], {"normalize": False, "scale": None}),
    "own positives": (views, [*VIEWS, T], {"positives_in_denominator": False}),
    "classes": (
        lambda x, t, **o: co.sup_con(x, LABELS, temperature=t, **o),
        [torch.cat(VIEWS[:2]), T],
        {},
    ),
    "pairs": (pairs, [*SETS, T, BIAS], {}),
    "pairs with ids": (pairs, [*SETS, T, BIAS], KNOWN),
    "pairs of dot products": (pairs, [*SETS, T, BIAS], {"normalize": False}),
    "prefixes": (prefixes, [*SETS, T], {}),
    "prefixes, all": (
        prefixes,
        [*SETS, NEGATIVES, T],
        STRICT | WEIGHTED | KNOWN | {"negative_ids": torch.arange(37), "guide": GUIDE},
    ),
    "prefixes, several positives": (prefixes, [*SETS, T], {"positives": POSITIVES}),
    "prefixes both ways": (
        prefixes,
        [*SETS, T],
        KNOWN | WEIGHTED | {"symmetric": True, "margin": 0.05, "label_smoothing": 0.1},
    ),
    "prefixes of dot products both ways": (
        prefixes,
        [*SETS, HARD, T],
        WEIGHTED | {"symmetric": True, "normalize": False, "own_negative_log_weight": 0.7},
    ),
    "prefixes of one set": (
        partial(views, matryoshka_dims=DIMS),
        [*VIEWS, T],
        WEIGHTED | {"margin": 0.05, "label_smoothing": 0.1},
    ),
    "prefixes of dot products of one set": (
        partial(views, matryoshka_dims=DIMS),
        [*VIEWS[:2], T],
        {"normalize": False},
    ),
    "prefixes of classes": (
        lambda x, t, **o: co.sup_con(x, LABELS, temperature=t, matryoshka_dims=DIMS, **o),
        [torch.cat(VIEWS[:2]), T],
        WEIGHTED,
    ),
    "prefixes of dot products": (prefixes, [*SETS, T], {"normalize": False}),
    "prefixes, candidates of explicit negatives": (
        prefixes,
        [*SETS, NEGATIVES, T],
        {"in_batch": False},
    ),
    "prefixes, negatives with weights": (
        prefixes,
        [*SETS, NEGATIVES, T],
        STRICT | WEIGHTED | {"negative_log_weight": LOG_WEIGHTS[0, :37]},
    ),
    "prefixes, everybody's hard negatives": (
        prefixes,
        [*SETS, HARD, T],
        {"own_negative_log_weight": 0.7, "negative_log_weight": LOG_WEIGHTS[:, :3]},
    ),
    "prefixes, own hard negatives": (
        prefixes,
        [*SETS, HARD, T],
        STRICT
        | WEIGHTED
        | KNOWN
        | {"negatives_scope": "own", "negative_ids": (torch.arange(3 * N) % 50).view(N, 3)}
        | {"own_negative_log_weight": 0.7, "negative_log_weight": LOG_WEIGHTS[:, :3]},
    ),
    "prefixes, own hard negatives alone": (
        prefixes,
        [*SETS, HARD, T],
        {"negatives_scope": "own", "in_batch": False, "normalize": False},
    ),
}


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("name", CALLS)
def test_options(name, reduction, isa, unaided):
    """In float64, at once and in steps, against the definition."""
    loss, leaves, options = CALLS[name]
    expected = outcome(loss, leaves, "reference", reduction=reduction, **options)
    for workspace_bytes in (None, 1 << 18):
        actual = outcome(
            loss,
            leaves,
            "cpu",
            reduction=reduction,
            workspace_bytes=workspace_bytes,
            **options,
        )
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_very_many_prefixes(reduction, dtype, unaided, cpu_kernel):
    """Every prefix there is, more than a stripe has room for."""
    leaves = [x.to(dtype) for x in SETS]
    options = {"temperature": 0.3, "matryoshka_dims": range(1, 71), "reduction": reduction}
    expected = outcome(co.info_nce, [x.double() for x in leaves], "reference", **options)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-2
    for workspace_bytes in (None, 1 << 20):
        options["workspace_bytes"] = workspace_bytes
        actual = outcome(co.info_nce, leaves, "cpu", **options)
        for a, e in zip(actual, expected, strict=True):
            scale = e.abs().max().item()
            torch.testing.assert_close(a.double(), e, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("name", CALLS)
def test_torch_backend(name):
    loss, leaves, options = CALLS[name]
    expected = outcome(loss, leaves, "reference", **options)
    actual = outcome(loss, leaves, "torch", workspace_bytes=1 << 18, **options)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("workspace_bytes", [None, 1 << 18])
@pytest.mark.parametrize(
    "name", ["three views", "pairs with ids", "prefixes, all", "prefixes of one set"]
)
def test_thread_counts(name, workspace_bytes, dtype, restored_threads, cpu_kernel):
    loss, leaves, options = CALLS[name]
    leaves = [x.to(dtype) if x.dim() else x for x in leaves]
    leaves = [torch.cat([x, x.flip(0), -x]) if x.dim() else x for x in leaves]  # three stripes
    options = {k: v for k, v in options.items() if k != "guide"}
    for key in ("query_ids", "key_ids", "negative_ids"):
        if key in options:
            options[key] = options[key].repeat(3)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(outcome(loss, leaves, "cpu", workspace_bytes=workspace_bytes, **options))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("form", [{}, {"sum_over_positives": "in"}])
@pytest.mark.parametrize("name", ["two views", "classes"])
def test_prefixes_of_one_set(name, form, reduction, backend):
    """In two equal sets at once, or one after another: the sum over truncated rows."""
    loss, leaves, _ = CALLS[name]
    options = {"reduction": reduction} | (form if name == "classes" else {})
    dims, weights = (33, 70, 8), (0.5, 1.0, -2.0)

    def looped(*tensors, backend):
        *views, temperature = tensors
        parts = [
            w * loss(*(x[:, :dim] for x in views), temperature, backend=backend, **options)
            for dim, w in zip(dims, weights, strict=True)
        ]
        return torch.stack(parts).sum(0)

    prefixed = {"matryoshka_dims": dims, "matryoshka_weights": weights}
    actual = outcome(loss, leaves, backend, **prefixed, **options)
    torch.testing.assert_close(actual, outcome(looped, leaves, "reference"), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("short", [0.0, 1e-16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_prefix_far_shorter_than_its_row(short, dtype, reduction, cpu_kernel):
    """It still has a direction, which one scale for the whole row would lose."""
    leaves = [x.to(dtype) for x in SETS]
    leaves[0] = leaves[0].clone()
    leaves[0][3, :10] *= short
    options = {"matryoshka_dims": (70, 10), "reduction": reduction}
    loss, *grads = outcome(co.info_nce, leaves, "cpu", **options)
    expected, *exact = outcome(co.info_nce, [x.double() for x in leaves], "reference", **options)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(loss.double(), expected, rtol=tolerance, atol=1e-4)
    for grad, right in zip(grads, exact, strict=True):
        # Row by row: the short prefix' gradient is as large as it is short.
        scale = right[:, :10].abs().amax(1, keepdim=True)
        assert ((grad.double() - right)[:, :10].abs() <= tolerance * scale + 1e-9).all()


def test_operators(bounded_backend, monkeypatch):
    """The problems as operators: their fakes tell the shapes, and a graph gives the same."""
    handed = []
    small = [x[:6, :8] for x in (*VIEWS[:2], NEGATIVES)]
    wrapped = ops.softmax_ce

    def noted(*arguments):
        handed.append(arguments)
        return wrapped(*arguments)

    monkeypatch.setattr(ops, "softmax_ce", noted)
    monkeypatch.setattr("contrastive_ops.engine.tracing.is_traced", lambda: True)
    for loss, leaves, options in (
        (views, [*small[:2], T], {}),
        (pairs, [*small[:2], T, BIAS], {}),
        (co.info_nce, small, {"matryoshka_dims": (4, 8)}),
    ):
        loss(*leaves, backend=bounded_backend, **options)
    monkeypatch.undo()
    namespace = torch.ops.contrastive_ops
    assert len(handed) == 3
    for name, problem, operands, weight in handed:
        flat = ops._flat(name, problem, operands)
        known = ops._flat_weight(weight)
        wanted = [t is not None for t in operands[: len(Gradients._fields)]]
        wanted[1] &= not problem.one_set
        torch.library.opcheck(namespace.softmax_ce_forward.default, flat)
        _, row, column = namespace.softmax_ce_forward(*flat)
        arguments = [*flat, row, column, *known, wanted]
        torch.library.opcheck(namespace.softmax_ce_backward.default, arguments)
        torch.library.opcheck(namespace.softmax_ce_total.default, [*flat, *known, wanted])
        total = namespace.softmax_ce_total(*flat, *known, wanted)
        again = namespace.softmax_ce_backward(*arguments)
        torch.testing.assert_close(total[1:], list(again), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["three views", "pairs with ids", "prefixes"])
def test_compiled(name, cpu_kernel):
    loss, leaves, options = CALLS[name]
    compiled = torch.compile(partial(loss, backend="cpu", **options), backend="aot_eager")
    fresh = [[x.detach().clone().requires_grad_() for x in leaves] for _ in range(2)]
    expected, actual = loss(*fresh[0], backend="cpu", **options), compiled(*fresh[1])
    expected.backward()
    actual.backward()
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)
    for a, e in zip(*([x.grad for x in side] for side in fresh), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", ["two views", "pairs with ids", "prefixes"])
def test_derivatives(name, cpu_kernel):
    loss, leaves, options = CALLS[name]
    options = {k: v[:5] if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    small = [x[:5, :70:14].clone() if x.dim() else x.clone() for x in leaves]
    if name == "prefixes":
        loss = partial(co.info_nce, matryoshka_dims=(2, 5))
        small = small[:2]
    small = [x.requires_grad_() for x in small]
    call = partial(loss, backend="cpu", **options)
    assert torch.autograd.gradcheck(call, small)
    assert torch.autograd.gradgradcheck(call, small)


@pytest.mark.parametrize("wanted", ["query", "key", "negatives", "temperature"])
@pytest.mark.parametrize("name", [name for name in CALLS if "hard negatives" in name])
def test_a_single_gradient_of_prefixes(name, wanted, unaided, cpu_kernel):
    """What is frozen is neither computed nor needed for the rest."""
    loss, leaves, options = CALLS[name]
    place = ["query", "key", "negatives", "temperature"].index(wanted)
    found = []
    for backend in ("cpu", "reference"):
        fresh = [x.detach().clone().requires_grad_(i == place) for i, x in enumerate(leaves)]
        for reduction in ("mean", "none"):
            value = loss(*fresh, backend=backend, reduction=reduction, **options).sum()
            found += torch.autograd.grad(value, fresh[place])
    torch.testing.assert_close(found[:2], found[2:], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"negatives_scope": "own"}])
def test_losses_that_are_not_summed(options, dtype, isa, unaided):
    """(prefixes, N), each with a weight of its own, at once and in steps."""
    tensors = [x.to(dtype) for x in (*SETS, HARD)]
    problem, operands = describe(
        *tensors, temperature=T, margin=0.05, own_negative_log_weight=0.5, **options
    )
    problem, _ = on_prefixes(problem, operands, [(dim, 1.0) for dim in DIMS])
    problem = problem._replace(prefix_weights=())
    weight = torch.linspace(-1, 2, len(DIMS) * N, dtype=operands.accumulation_dtype)
    weight = weight.view(len(DIMS), N)
    found = []
    for backend in ("cpu", "cpu in steps", "reference"):
        if backend == "cpu in steps":
            problem = problem._replace(workspace_bytes=1 << 18)
        fresh = [
            x.detach().clone().requires_grad_() if x is not None and i < 5 else x
            for i, x in enumerate(operands)
        ]
        leaves = [x for x in fresh if x is not None and x.requires_grad]
        losses = softmax_ce(problem, Operands(*fresh), None, backend.split()[0])
        assert losses.shape == (len(DIMS), N)
        total = softmax_ce(problem, Operands(*fresh), weight, backend.split()[0])
        grads = [
            *torch.autograd.grad((losses * weight).sum(), leaves),
            *torch.autograd.grad(total, leaves),
        ]
        found.append([losses.detach(), total.detach(), *grads])
    tolerance = {torch.float64: 1e-11, torch.float32: 1e-4, torch.bfloat16: 2e-2}[dtype]
    for actual in found[:2]:
        for a, e in zip(actual, found[2], strict=True):
            scale = e.abs().max().item()
            torch.testing.assert_close(a, e, rtol=0, atol=tolerance * scale)
