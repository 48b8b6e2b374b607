"""In PyTorch's surroundings: torch.compile, torch.library, autocast, the profiler, DDP-like use."""

import pytest
import torch
from cases import CASES, D, N, one, shared
from torch._dynamo.testing import CompileCounterWithBackend
from torch.profiler import ProfilerActivity, profile

import contrastive_ops
from contrastive_ops import info_nce
from contrastive_ops.engine import ops

COMPILED = [
    "square",
    "scale",
    "own negatives",
    "several positives",
    "ids of per-query negatives",
    "guide, shared negatives",
    "log-weight of per-query",
    "row weight",
    "matryoshka",
    "symmetric, ids",
    "everything, several positives",
]
reduced = pytest.mark.parametrize("reduction", ["mean", "none"])


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled_loss(call, backend, compiler, **options):
    """Loss and gradients of a call whose loss is one graph."""
    fresh = call.fresh()
    names = list(fresh.leaves)

    @torch.compile(fullgraph=True, backend=compiler)
    def loss(*leaves):
        by_name = dict(zip(names, leaves, strict=True))
        arguments = fresh.arguments | by_name | options
        return info_nce(
            arguments.pop("query"),
            arguments.pop("key"),
            arguments.pop("negatives"),
            backend=backend,
            **arguments,
        )

    value = loss(*fresh.leaves.values())
    value.sum().backward()
    return value.detach(), {n: t.grad for n, t in fresh.leaves.items()}


@reduced
@pytest.mark.parametrize("name", COMPILED)
def test_compiled(name, reduction, bounded_backend):
    call = CASES[name]()
    eager = call.gradients(backend=bounded_backend, reduction=reduction)
    compiled = compiled_loss(call, bounded_backend, "aot_eager", reduction=reduction)
    torch.testing.assert_close(compiled, eager, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["square", "symmetric, ids"])
def test_compiled_reference(name):
    call = CASES[name]()
    eager = call.gradients(backend="reference")
    compiled = compiled_loss(call, "reference", "aot_eager")
    torch.testing.assert_close(compiled, eager, rtol=1e-12, atol=1e-14)


@pytest.mark.slow
def test_compiled_to_code(bounded_backend):
    call = CASES["symmetric, negatives"]()
    eager = call.gradients(backend=bounded_backend)
    torch.testing.assert_close(compiled_loss(call, bounded_backend, "inductor"), eager)


@reduced
@pytest.mark.parametrize("symmetric", [False, True])
def test_one_graph_for_every_batch_size(symmetric, reduction, bounded_backend):
    counter = CompileCounterWithBackend("aot_eager")

    def loss(query, key):
        return info_nce(
            query, key, symmetric=symmetric, reduction=reduction, backend=bounded_backend
        )

    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    for n in (8, 12, 20, 33, 64, 65):
        rows = [torch.randn(n, 5, requires_grad=True) for _ in range(2)]
        again = [x.detach().clone().requires_grad_() for x in rows]
        value, expected = compiled(*rows), loss(*again)
        value.sum().backward()
        expected.sum().backward()
        torch.testing.assert_close(value, expected)
        for x, y in zip(rows, again, strict=True):
            torch.testing.assert_close(x.grad, y.grad)
    assert counter.frame_count <= 2  # one for the first size, one for every other


def test_compiled_module(bounded_backend):
    module = contrastive_ops.InfoNCELoss(
        learnable_temperature=True, symmetric=True, backend=bounded_backend
    )
    encoder = torch.nn.Linear(6, 5)
    rows = torch.randn(2, 7, 6)

    def step(x):
        return module(encoder(x[0]), encoder(x[1]))

    parameters = [*encoder.parameters(), *module.parameters()]
    expected = torch.autograd.grad(step(rows), parameters)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(rows), parameters), expected)


def test_compiled_without_gradients(bounded_backend):
    rows = torch.randn(2, 7, 6)
    compiled = torch.compile(info_nce, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        loss = compiled(rows[0], rows[1], backend=bounded_backend)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, info_nce(rows[0], rows[1], backend=bounded_backend))


def test_compiled_with_autocast(bounded_backend):
    rows = torch.randn(2, 7, 6)

    def loss(x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return info_nce(x[0], x[1], backend=bounded_backend)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(rows), loss(rows), rtol=1e-7, atol=0)


@pytest.fixture
def described(monkeypatch):
    """(problem, operands, weight) that info_nce hands to its engine for a call."""

    def describe(call, **options):
        handed = []

        def engine(problem, operands, weight, backend, summary=None):
            handed.extend((problem, operands, weight))
            return torch.zeros(())

        with monkeypatch.context() as patch:
            patch.setattr("contrastive_ops.objectives.info_nce.softmax_ce", engine)
            call.loss(**options)
        return handed

    return describe


OPERATED = ["square", "own negatives", "symmetric, ids", "row weight", "smoothing, ids"]


@reduced
@pytest.mark.parametrize("name", OPERATED)
def test_differentiable_operator(name, reduction, bounded_backend, described):
    problem, operands, weight = described(CASES[name]().fresh(), reduction=reduction)
    arguments = [
        *ops._flat(bounded_backend, problem, operands),
        *ops._flat_weight(weight),
        weight is not None,
    ]
    operator = torch.ops.contrastive_ops.softmax_ce.default
    loss = operator(*arguments)
    expected = CASES[name]().loss(backend=bounded_backend, reduction=reduction)
    if weight is not None or "row_weight" not in CASES[name]().options:
        torch.testing.assert_close(loss.detach(), expected, rtol=1e-13, atol=0)
    # It is made of the operators below, which is what a graph records: nothing is registered
    # for its own autograd.
    utilities = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(operator, arguments, test_utils=utilities)


@pytest.mark.parametrize("name", OPERATED)
def test_raw_operators(name, bounded_backend, described):
    problem, operands, weight = described(CASES[name]())
    flat = ops._flat(bounded_backend, problem, operands)
    namespace = torch.ops.contrastive_ops
    wanted = [True, True, False, operands.own_negatives is not None, True, False]
    torch.library.opcheck(namespace.softmax_ce_forward.default, flat)
    _, row, column = namespace.softmax_ce_forward(*flat)
    known = ops._flat_weight(weight)
    torch.library.opcheck(
        namespace.softmax_ce_backward.default, [*flat, row, column, *known, wanted]
    )
    torch.library.opcheck(namespace.softmax_ce_total.default, [*flat, *known, wanted])
    total = namespace.softmax_ce_total(*flat, *known, wanted)
    again = namespace.softmax_ce_backward(*flat, row, column, *known, wanted)
    torch.testing.assert_close(total[1:], list(again), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("symmetric", [False, True])
def test_autocast_lowers_nothing(dtype, symmetric, backend):
    call = one(negatives=shared(), symmetric=symmetric, temperature=0.02)
    call = call.with_leaves({n: t.float() for n, t in call.leaves.items()})
    loss, gradients = call.gradients(backend=backend)
    with torch.autocast("cpu", dtype=dtype):
        again, lowered = call.gradients(backend=backend)
        assert again.dtype == torch.float32
    torch.testing.assert_close(again, loss, rtol=0, atol=0)
    torch.testing.assert_close(lowered, gradients, rtol=0, atol=0)


def test_autocast_promotes_to_the_widest(backend):
    """One encoder under autocast, another not: their rows differ in dtype."""
    query, key = torch.randn(6, 5).bfloat16(), torch.randn(7, 5)
    leaves = [query.requires_grad_(), key.requires_grad_()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = info_nce(*leaves, backend=backend)
    loss.backward()
    plain = [query.detach().float().requires_grad_(), key.detach().clone().requires_grad_()]
    expected = info_nce(*plain, backend=backend)
    expected.backward()
    assert torch.equal(loss, expected)
    assert query.grad.dtype == torch.bfloat16
    torch.testing.assert_close(query.grad, plain[0].grad.bfloat16())
    torch.testing.assert_close(key.grad, plain[1].grad)


def test_autocast_around_an_encoder(backend):
    """A training step as one writes it: 16-bit rows in; loss and weights' gradients in float32."""
    encoder = torch.nn.Linear(9, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows = [encoder(torch.randn(8, 9)) for _ in range(2)]
        assert rows[0].dtype == torch.bfloat16
        loss = info_nce(*rows, backend=backend)
    assert loss.dtype == torch.float32
    loss.backward()
    assert encoder.weight.grad.dtype == torch.float32
    assert encoder.weight.grad.any()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_profiler_range(reduction, backend):
    rows = [torch.randn(N, D, requires_grad=True) for _ in range(2)]
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        info_nce(*rows, reduction=reduction, backend=backend).sum().backward()
    assert any("contrastive_ops" in event.key for event in recorded.key_averages())


def test_hooks_and_modules_around_it(backend):
    """Hooks on the embeddings see the gradient, and may change it."""
    call = CASES["square"]().fresh()
    rows = call.query * 1
    seen = []
    rows.register_hook(lambda g: seen.append(g.clone()) or 2 * g)
    call.loss(query=rows, backend=backend).backward()
    _, expected = CASES["square"]().gradients(backend=backend)
    torch.testing.assert_close(seen[0], expected["query"], rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(call.query.grad, 2 * expected["query"], rtol=1e-12, atol=1e-15)


def test_saved_tensor_hooks(backend):
    """Activation offloading packs and unpacks whatever is saved."""
    call = CASES["symmetric, negatives"]().fresh()
    packed = []

    def pack(x):
        packed.append(x)
        return x.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = call.loss(backend=backend)
    loss.backward()
    assert packed
    _, expected = CASES["symmetric, negatives"]().gradients(backend=backend)
    for name, leaf in call.leaves.items():
        torch.testing.assert_close(leaf.grad, expected[name], rtol=1e-12, atol=1e-15)


def test_checkpointing(backend):
    call = CASES["symmetric, negatives"]().fresh()
    loss = torch.utils.checkpoint.checkpoint(
        lambda q, k: call.loss(query=q, key=k, backend=backend),
        call.query,
        call.key,
        use_reentrant=False,
    )
    loss.backward()
    _, expected = CASES["symmetric, negatives"]().gradients(backend=backend)
    torch.testing.assert_close(call.query.grad, expected["query"], rtol=1e-12, atol=1e-15)
