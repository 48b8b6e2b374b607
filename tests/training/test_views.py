"""Views of texts: what they do to tokens, on both layouts, and what they leave alone."""

from __future__ import annotations

import pytest
import torch

from contrastive_ops.training.views import NAMES, Views

LENGTHS = [8, 1, 5, 2, 12]
EDGES = (1, 2)  # such as [CLS], and [SEP] after a template's last word


def padded() -> dict[str, torch.Tensor]:
    """Texts of distinct tokens: text i has 100 i + 10, ...; edges are 1, then 2 and 3."""
    width = max(LENGTHS) + sum(EDGES) + 3
    ids = torch.zeros(len(LENGTHS), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for i, n in enumerate(LENGTHS):
        row = [1, *range(100 * i + 10, 100 * i + 10 + n), 2, 3]
        start = i % 3  # padding may be on either side
        ids[i, start : start + len(row)] = torch.tensor(row)
        mask[i, start : start + len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.ones_like(ids)}


def static() -> dict[str, torch.Tensor]:
    rows = [list(range(100 * i + 10, 100 * i + 10 + n)) for i, n in enumerate(LENGTHS)]
    rows.insert(2, [])  # a text without any known word
    ends = torch.tensor([0, *map(len, rows)]).cumsum(0)
    return {
        "input_ids": torch.tensor([token for row in rows for token in row]),
        "offsets": ends[:-1],
    }


def texts_of(features) -> list[list[int]]:
    """The own tokens of each text; checks that the edges are there."""
    ids = features["input_ids"]
    if "offsets" in features:
        ends = [*features["offsets"].tolist()[1:], len(ids)]
        return [ids[a:b].tolist() for a, b in zip(features["offsets"].tolist(), ends, strict=True)]
    rows = []
    assert features["token_type_ids"].shape == ids.shape
    for row, mask in zip(ids, features["attention_mask"], strict=True):
        kept = row[mask.bool()].tolist()
        assert (kept[0], kept[-2:]) == (1, [2, 3])
        rows.append(kept[1:-2])
    return rows


@pytest.mark.parametrize("layout", [padded, static])
@pytest.mark.parametrize("name", ["delete:0.5", "delete-one", "crop:0.3", "repeat:0.5", "shuffle"])
def test_a_view_does_what_its_name_says(name, layout):
    edges = EDGES if layout is padded else (0, 0)
    view = Views([name], edges)
    before = texts_of(layout())
    sizes: dict[int, set[int]] = {}
    places = set()
    for _ in range(60):
        for old, new in zip(before, texts_of(view(layout())), strict=True):
            n = len(old)
            sizes.setdefault(n, set()).add(len(new))
            if name == "shuffle":
                assert sorted(new) == old
                places.update(new[:1] if n == 12 else [])
                continue
            assert new == sorted(new)
            assert set(new) <= set(old)
            if name.startswith("crop") and n:
                assert new == list(range(new[0], new[0] + max(1, round(0.7 * n))))
                places.update(new[:1] if n == 12 else [])
            if name.startswith("repeat"):
                assert set(new) == set(old)
                assert all(new.count(token) <= 2 for token in old)
    if name.startswith("delete:"):
        assert sizes[1] == {1}
        assert min(sizes[2]) >= 1
        assert len(sizes[12]) > 4
    elif name == "delete-one":
        assert sizes == {n: {max(n - 1, min(n, 1))} for n in sizes}
    elif name.startswith("repeat"):
        assert sizes[12] == set(range(12, 19))  # n / 2 at most
        assert sizes[5] == {5, 6, 7}  # ESimCSE: 2 at least may be doubled
    else:
        assert len(places) > 3


def test_views_draw_from_the_global_generator_alone():
    view = Views(["repeat", "delete:0.3", "shuffle"], EDGES)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, second = texts_of(view(padded())), texts_of(view(padded()))
    torch.set_rng_state(state)
    assert texts_of(view(padded())) == first
    assert first != second


def test_no_text_grows_beyond_the_limit():
    view = Views(["repeat:0.9"], EDGES, limit=15)
    found = [len(t) for _ in range(30) for t in texts_of(view(padded()))]
    assert max(found) <= 12
    assert max(found) > 8


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["drop"], "views: got 'drop', expected one of dropout"),
        (["delete:1.5"], "views: got the rate '1.5' in 'delete:1.5', expected"),
        (["crop:x"], "got the rate 'x'"),
    ],
)
def test_a_wrong_view_is_named(names, message):
    with pytest.raises(ValueError, match=message):
        Views(names)


class Layers(torch.nn.Sequential):
    """As much of a static SentenceTransformer as a view looks at."""

    def __init__(self, embedding):
        super().__init__(torch.nn.Sequential())
        self[0].embedding = embedding


@pytest.mark.parametrize("shape", [(4, 6), (4,)])
def test_cutoffs_zero_parts_of_the_embedding_and_leave_no_trace(shape):
    embedding = torch.nn.Embedding(50, 32)
    model = Layers(embedding)
    ids = torch.arange(torch.Size(shape).numel()).reshape(shape)
    plain = embedding(ids)
    with Views(["feature-cutoff:0.5"]).cutting(model):
        cut = embedding(ids) == 0
    share = cut.double().mean().item()
    assert 0.3 < share < 0.7
    if len(shape) == 2:
        assert (cut == cut[:, :1]).all()  # the same features of every token
        with Views(["token-cutoff:0.5"]).cutting(model):
            cut = embedding(ids) == 0
        assert (cut == cut[..., :1]).all()
        assert cut.any()
        assert not cut.all()
    else:
        with (
            pytest.raises(ValueError, match="token-cutoff for a static model"),
            Views(["token-cutoff"]).cutting(model),
        ):
            embedding(ids)
    assert torch.equal(embedding(ids), plain)


def test_every_name_is_known():
    assert set(NAMES) >= {"dropout", "repeat", "delete", "crop", "shuffle", "token-cutoff"}
    features = padded()
    assert Views(["dropout"])(features) is features
