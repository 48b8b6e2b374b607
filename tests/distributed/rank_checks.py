"""What every rank checks; the oracle is the float64 reference on all ranks' rows in one process."""

import copy
import math

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import contrastive_ops
from contrastive_ops.distributed import InfoNCELoss, info_nce

D, H = 6, 2
# Rows of each rank by number of ranks: equal batches, and others.
QUERIES = {2: (4, 4), 3: (5, 3, 4)}
KEYS = {2: (5, 5), 3: (7, 3, 5)}
NEGATIVES = {2: (3, 3), 3: (2, 4, 3)}
TENSORS = ("query", "key", "negatives", "temperature")


def spread(counts, width=D, seed=0):
    """Each rank's rows, known to every rank."""
    generator = torch.Generator().manual_seed(seed)
    counts = counts[dist.get_world_size()]
    return [torch.randn(n, width, generator=generator, dtype=torch.float64) for n in counts]


def numbers(counts, seed, high):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(high, (n,), generator=generator) for n in counts[dist.get_world_size()]]


def rows(negatives=True):
    given = {"query": spread(QUERIES, seed=1), "key": spread(KEYS, seed=2)}
    return given | ({"negatives": spread(NEGATIVES, seed=3)} if negatives else {})


def rows_with_own_negatives():
    own = [x.view(-1, H, D) for x in spread(QUERIES, H * D, seed=4)]
    return rows() | {"negatives": own}


def positives(width):
    """Key numbers of each rank, some rows with pads."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for n, m in zip(*(counts[dist.get_world_size()] for counts in (QUERIES, KEYS)), strict=True):
        order = torch.stack([torch.randperm(m, generator=generator)[:width] for _ in range(n)])
        if width > 1:
            order[::2, -1] = -1
        found.append(order)
    return found


def plain():
    return rows(negatives=False), {}


def shared_negatives():
    given = rows()
    bias = [x[:, 0] for x in spread(NEGATIVES, seed=5)]
    bias[0][1] = -math.inf
    return given | {"negative_log_weight": bias}, {"temperature": 0.3}


def own_negatives():
    given = rows_with_own_negatives()
    return given, {"negatives_scope": "own", "own_negative_log_weight": 0.7}


def grouped_negatives():
    return rows_with_own_negatives(), {"own_negative_log_weight": 1.3, "margin": 0.1}


def identified():
    given = rows()
    return given | {
        "query_ids": numbers(QUERIES, 1, 5),
        "key_ids": numbers(KEYS, 2, 5),
        "negative_ids": numbers(NEGATIVES, 3, 5),
    }, {"scale": 3.0}


def half_identified():
    given, _ = identified()
    del given["negative_ids"]
    return given, {"normalize": False, "temperature": 2.0}


def guided():
    given = rows()
    guides = [spread(c, 3, seed=7 + i) for i, c in enumerate((QUERIES, KEYS, NEGATIVES))]
    return given | {"guide": list(zip(*guides, strict=True))}, {"guide_margin": 0.1}


def by_index():
    given = rows()
    return given | {"positives": [p[:, 0] for p in positives(1)]}, {}


def several_positives():
    given = rows(negatives=False)
    return given | {"positives": positives(2)}, {"temperature": 0.4}


def weighted():
    given = rows(negatives=False)
    weight = [x[:, 0].abs() for x in spread(QUERIES, seed=6)]
    weight[1] = torch.zeros_like(weight[1])  # a rank may count nothing
    return given | {"row_weight": weight}, {}


def thresholds():
    return rows(), {"false_negative_margin": 0.1, "label_smoothing": 0.2}


def prefixes():
    return rows(), {"matryoshka_dims": [6, 2, 3], "matryoshka_weights": [1.0, 0.5, 0.25]}


def not_in_batch():
    return rows(), {"in_batch": False}


def added_up():
    return rows(negatives=False), {"reduction": "sum", "temperature": torch.tensor(0.2)}


CASES = {
    case.__name__: case
    for case in (
        plain,
        shared_negatives,
        own_negatives,
        grouped_negatives,
        identified,
        half_identified,
        guided,
        by_index,
        several_positives,
        weighted,
        thresholds,
        prefixes,
        not_in_batch,
        added_up,
    )
}
ONE_WAY = {"not_in_batch"}
NOT_IN_A_RING = {"thresholds", "several_positives"}
ERRORS = {torch.float64: 1e-9, torch.float32: 3e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def in_dtype(given, dtype):
    """Embeddings rounded to a dtype; numbers and guides as they are."""
    return {
        name: [x.to(dtype) for x in value] if name in TENSORS else value
        for name, value in given.items()
    }


def of_rank(given, rank):
    return {name: value[rank] for name, value in given.items()}


def of_all(given):
    """All ranks' rows one after another; key numbers count on."""
    own = given.get("positives") or [torch.arange(len(x)) for x in given["query"]]
    starts = [sum(len(k) for k in given["key"][:rank]) for rank in range(len(own))]
    numbers = [torch.where(p < 0, p, p + s) for p, s in zip(own, starts, strict=True)]
    every = {name: torch.cat(x) for name, x in given.items() if name != "guide"}
    if "guide" in given:
        every["guide"] = [torch.cat(x) for x in zip(*given["guide"], strict=True)]
    return every | {"positives": torch.cat(numbers)}


def graded(loss_of, call, options, seed=None):
    """The loss and its gradients in the embeddings and the temperature."""
    call = dict(call)
    tensors = {name: call.pop(name).clone().requires_grad_() for name in TENSORS if name in call}
    options = dict(options)
    name = "scale" if "scale" in options else "temperature"
    value = torch.as_tensor(options.pop(name, 0.05), dtype=torch.float32)
    options[name] = value.clone().requires_grad_()
    loss = loss_of(*tensors.values(), **call, **options)
    loss.backward(seed)
    found = {k: t.grad for k, t in tensors.items()}
    return loss.detach(), found | {"temperature": options[name].grad}


def assert_close(found, expected, error, name):
    expected = expected.double()
    assert found.shape == expected.shape, name
    scale = expected.norm() if expected.numel() else 0.0
    assert (found.double() - expected).norm() <= error * scale + 1e-12, (name, found, expected)


def equals_one_process(case, strategy, dtype=torch.float64, gradient="mean", **options):
    given, more = CASES[case]()
    options = more | options
    given = in_dtype(given, dtype)
    rank, world = dist.get_rank(), dist.get_world_size()
    loss, grads = graded(
        info_nce,
        of_rank(given, rank),
        {**options, "strategy": strategy, "gradient": gradient},
    )
    wide = in_dtype(given, torch.float64)
    expected, wanted = graded(
        contrastive_ops.info_nce, of_all(wide), {**options, "backend": "reference"}
    )
    error = ERRORS[dtype]
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_close(loss, expected, min(error, 3e-6), "loss")
    factor = world if gradient == "mean" else 1
    temperature = wanted.pop("temperature") / (1 if gradient == "mean" else world)
    assert_close(grads.pop("temperature"), temperature, max(error, 1e-6), "temperature")
    for name, grad in grads.items():
        assert grad.dtype == dtype
        own = wanted[name].split([len(x) for x in given[name]])[rank]
        assert_close(grad, own * factor, error, name)


def no_reduction(strategy):
    """The losses of this rank's rows; whatever the ranks make of them adds up."""
    given, _ = weighted()
    rank = dist.get_rank()
    seeds = [x[:, 0] for x in spread(QUERIES, seed=9)]
    options = {"reduction": "none", "symmetric": True}
    losses, grads = graded(
        info_nce, of_rank(given, rank), options | {"strategy": strategy}, seeds[rank]
    )
    expected, wanted = graded(contrastive_ops.info_nce, of_all(given), options, torch.cat(seeds))
    assert_close(losses, expected.split([len(x) for x in seeds])[rank], 1e-9, "losses")
    for name in ("query", "key"):
        own = wanted[name].split([len(x) for x in given[name]])[rank]
        assert_close(grads[name], own, 1e-9, name)


def same_on_every_rank_and_run(strategy):
    given, _ = plain()
    call = of_rank(in_dtype(given, torch.float32), dist.get_rank())
    loss, grads = graded(info_nce, call, {"strategy": strategy})
    again, grads_again = graded(info_nce, call, {"strategy": strategy})
    every = [torch.empty_like(loss) for _ in range(dist.get_world_size())]
    dist.all_gather(every, loss)
    assert all(torch.equal(x, again) for x in every)
    assert all(torch.equal(grads[name], grads_again[name]) for name in grads)


def small_losses_keep_their_digits(strategy):
    """A loss near 0 is not what is left of two large numbers."""
    query = [torch.nn.functional.normalize(x, dim=1).float() for x in spread(QUERIES, 40, seed=1)]
    given = {"query": query, "key": query}
    options = {"scale": 30.0}
    call = of_rank(given, dist.get_rank())
    loss, grads = graded(info_nce, call, options | {"strategy": strategy})
    wide = in_dtype(given, torch.float64)
    expected, wanted = graded(
        contrastive_ops.info_nce, of_all(wide), options | {"backend": "reference"}
    )
    assert 0 < expected < 1e-5
    assert_close(loss, expected, 1e-5, "loss")
    assert_close(grads["temperature"], wanted["temperature"], 1e-5, "temperature")


def data_parallel(strategy, gradient):
    """What an encoder and a temperature learn: with averaged, or with summed gradients."""
    torch.manual_seed(3)
    encoder = torch.nn.Linear(D, 4, dtype=torch.float64)
    alone = copy.deepcopy(encoder)
    loss_fn = InfoNCELoss(
        temperature=0.3,
        learnable_temperature=True,
        symmetric=True,
        strategy=strategy,
        gradient=gradient,
    )
    one = contrastive_ops.InfoNCELoss(temperature=0.3, learnable_temperature=True, symmetric=True)
    given, _ = plain()
    rank, world = dist.get_rank(), dist.get_world_size()
    model = DistributedDataParallel(encoder) if gradient == "mean" else encoder
    for _ in range(2):  # the second step adds to what the first has left
        both = model(torch.cat([given["query"][rank], given["key"][rank]]))
        query, key = both.split([len(given["query"][rank]), len(given["key"][rank])])
        loss_fn(query, key).backward()
        every = of_all(given)
        one(alone(every["query"]), alone(every["key"]), positives=every["positives"]).backward()
    for ours, theirs in zip(encoder.parameters(), alone.parameters(), strict=True):
        if gradient == "sum":
            dist.all_reduce(ours.grad)
        torch.testing.assert_close(ours.grad, theirs.grad)
    learned = loss_fn.temperature.log_scale.grad * (1 if gradient == "mean" else world)
    torch.testing.assert_close(learned, one.temperature.log_scale.grad)


def second_derivatives():
    """Of the sum of what the ranks make of their gradients."""
    given, options = shared_negatives()
    del given["negative_log_weight"]
    options["symmetric"] = True
    rank = dist.get_rank()

    def penalty(loss_of, call, **more):
        tensors = [call.pop(name).clone().requires_grad_() for name in TENSORS[:3]]
        temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        inputs = [*tensors, temperature]
        loss = loss_of(*tensors, **call, **options | more | {"temperature": temperature})
        grads = torch.autograd.grad(loss, inputs, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads[:3]), inputs)

    found = penalty(info_nce, of_rank(given, rank), gradient="sum")
    expected = penalty(contrastive_ops.info_nce, of_all(given), backend="reference")
    for name, ours, theirs in zip(TENSORS, found, expected, strict=True):
        if name == "temperature":
            assert_close(ours * dist.get_world_size(), theirs, 1e-9, name)
        else:
            own = theirs.split([len(x) for x in given[name]])[rank]
            assert_close(ours, own, 1e-9, name)


def statistics():
    given, _ = shared_negatives()
    rank, seen, expected = dist.get_rank(), [], []
    info_nce(**of_rank(given, rank), statistics=seen.append)
    contrastive_ops.info_nce(**of_all(given), statistics=expected.append)
    own = slice(*torch.tensor([0, *map(len, given["query"])]).cumsum(0)[rank : rank + 2])
    assert torch.equal(seen[0].rank, expected[0].rank[own])
    torch.testing.assert_close(seen[0].hardest_negative, expected[0].hardest_negative[own])
    assert seen[0].accuracy == (seen[0].rank == 0).double().mean()
    every = sum(len(x) for x in given["negatives"] + given["key"]) - 1
    assert seen[0].left_out.item() == pytest.approx(1 / every)  # the padded negative


def no_gradient():
    given, _ = plain()
    call = of_rank(given, dist.get_rank())
    frozen = {"query": call["query"].requires_grad_(), "key": call["key"]}
    for strategy in ("all_gather", "ring"):
        with torch.no_grad():
            expected = contrastive_ops.info_nce(**of_all(given))
            assert_close(info_nce(**call, strategy=strategy), expected, 1e-9, "loss")
        info_nce(**frozen, strategy=strategy).backward()
        assert frozen["key"].grad is None


def subgroup():
    """Of the first two ranks; the last is no part of it."""
    group = dist.new_group([0, 1])
    given, _ = plain()
    rank = dist.get_rank()
    call = of_rank(given, rank)
    if rank > 1:
        with pytest.raises(ValueError, match="group: this process is not in it"):
            info_nce(**call, group=group)
        return
    first = {name: value[:2] for name, value in given.items()}
    for strategy in ("all_gather", "ring"):
        loss = info_nce(**call, group=group, strategy=strategy)
        assert_close(loss, contrastive_ops.info_nce(**of_all(first)), 1e-9, strategy)


def wrong_on_one_rank():
    """All ranks raise, and the next call is served."""
    given = rows()
    rank = dist.get_rank()
    last = dist.get_world_size() - 1
    call = of_rank(given, rank)
    mistakes = {
        "temperature: got -1": {"temperature": -1},
        "row_weight: got shape": {"row_weight": torch.ones(99)},
        "backend: got 'abacus'": {"backend": "abacus"},
        "strategy: got 'star'": {"strategy": "star"},
        "gradient: got 'max'": {"gradient": "max"},
        "reduction: got 'median'": {"reduction": "median"},
        "query: got str, expected a tensor": {"query": "what"},
    }
    for message, mistake in mistakes.items():
        prefix = "" if rank == last else f"rank {last} of the group has wrong arguments: "
        kind = TypeError if rank == last and "query" in mistake else ValueError
        with pytest.raises(kind, match=f"^{prefix}{message}"):
            info_nce(**call | (mistake if rank == last else {}))
    differences = {
        "margin: got": {"margin": 0.5},
        "negatives: got": {"negatives": None},
        "key: got": {"key": call["key"].clone().requires_grad_()},
        "gradient: got 'sum' on rank|gradient: got 'mean' on rank": {"gradient": "sum"},
        "guide: got": {"guide": (call["query"], call["key"])},
    }
    for message, difference in differences.items():
        with pytest.raises(ValueError, match=f"({message}).*expected the same"):
            info_nce(**call | (difference if rank == last else {}))
    weights = torch.full((len(call["query"]),), -1.0 if rank == last else 1.0)
    with pytest.raises(ValueError, match="row_weight: got values from -1"):
        info_nce(**call, row_weight=weights)
    info_nce(**call)


def not_in_a_ring():
    given = rows()
    call = of_rank(given, dist.get_rank())
    n = len(call["query"])
    for option, value in {
        "false_negative_margin": 0.1,
        "label_smoothing": 0.1,
        "positives": torch.tensor([[0, 1]] * n),
        "statistics": print,
    }.items():
        with pytest.raises(ValueError, match=f"{option}: .*strategy='all_gather'"):
            info_nce(**call, strategy="ring", **{option: value})
    call = {name: x.requires_grad_() for name, x in call.items()}
    with pytest.raises(ValueError, match="strategy: got 'ring' for second derivatives"):
        torch.autograd.grad(info_nce(**call, strategy="ring"), call["key"], create_graph=True)


def empty_negatives():
    given, _ = plain()
    call = of_rank(given, dist.get_rank())
    negatives = torch.empty(0, D, dtype=torch.float64, requires_grad=True)
    info_nce(**call, negatives=negatives).backward()
    assert negatives.grad.shape == (0, D)


def compiled():
    given, _ = plain()
    call = of_rank(given, dist.get_rank())
    call["query"].requires_grad_()
    loss = torch.compile(lambda **x: info_nce(**x) * 2, backend="eager")(**call)
    loss.backward()
    assert_close(loss, info_nce(**call) * 2, 1e-12, "loss")
