"""Scores against sentence-transformers' evaluators, scikit-learn, and their definitions."""

from __future__ import annotations

import math
import random

import pytest
import torch
from sentence_transformers.sentence_transformer import evaluation as theirs
from sklearn.neighbors import KNeighborsClassifier
from small_encoder import make_texts
from torch.nn.functional import normalize

from contrastive_ops import evaluation as ours

SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")


def agree(found, expected):
    assert found == pytest.approx(expected, abs=1e-6, rel=0, nan_ok=False)


@pytest.fixture(scope="module")
def pairs():
    first, second = make_texts(300, 0), make_texts(300, 1)
    second[:40] = first[:40]  # similarities of exactly 1, and texts on both sides
    draw = random.Random(2)
    return first, second, [draw.randint(0, 10) / 2 for _ in first]


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_sts(encoder, pairs, similarity):
    reference = theirs.EmbeddingSimilarityEvaluator(
        *pairs, main_similarity=similarity, name="x", write_csv=False
    )
    expected = reference(encoder)
    found = ours.STSEvaluator(*pairs, similarity=similarity, name="x")(encoder)
    assert set(found) == {"x_spearman", "x_pearson"}
    for kind in ("spearman", "pearson"):
        agree(found[f"x_{kind}"], expected[f"x_{kind}_{similarity}"])
    assert abs(found["x_spearman"]) > 1e-3


def test_sts_of_several_sets_is_of_all_their_pairs(encoder, pairs):
    parts = {"a": slice(0, 50), "b": slice(50, 300)}
    sets = [{name: column[part] for name, part in parts.items()} for column in pairs]
    found = ours.STSEvaluator(*sets)(encoder)
    whole = ours.STSEvaluator(*pairs)(encoder)
    assert {key: found[key] for key in whole} == whole
    for name, part in parts.items():
        own = ours.STSEvaluator(*(column[part] for column in pairs))(encoder)
        assert {key: found[f"{name}_{key}"] for key in own} == own
    # Neither the mean of the sets nor one of them.
    assert found["spearman"] not in (found["a_spearman"], found["b_spearman"])


def test_sts_without_any_order_is_zero():
    rows = torch.ones(3, 4)
    assert ours.sts_scores(rows, rows, [1, 2, 3]) == {"spearman": 0.0, "pearson": 0.0}


def test_sts_of_perfect_order_is_one():
    x = torch.tensor([[1.0, 0.0]]).repeat(4, 1)
    y = torch.tensor([[math.cos(a), math.sin(a)] for a in (0.1, 0.9, 0.2, 3.0)])
    found = ours.sts_scores(x, y, [4.0, 2.0, 3.0, 1.0])
    assert found["spearman"] == pytest.approx(1.0)
    assert 0.5 < found["pearson"] < 1.0


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("margin", [0.0, 0.1])
def test_triplets(encoder, similarity, margin):
    texts = [make_texts(200, seed) for seed in (3, 4, 5)]
    texts[2][:20] = texts[1][:20]  # equal similarities are wrong
    reference = theirs.TripletEvaluator(
        *texts, main_similarity_function=similarity, margin=margin, write_csv=False
    )
    expected = reference(encoder)[f"{similarity}_accuracy"]
    found = ours.TripletEvaluator(*texts, similarity=similarity, margin=margin)(encoder)
    agree(found["accuracy"], expected)
    assert 0.1 < expected < 0.9


@pytest.fixture(scope="module")
def task():
    queries, corpus = make_texts(60, 6), list(dict.fromkeys(make_texts(400, 7)))
    draw = random.Random(8)
    positives = [draw.sample(range(len(corpus)), draw.choice([1, 1, 2, 30])) for _ in queries]
    return queries, corpus, positives


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
def test_retrieval(encoder, task, similarity):
    queries, corpus, positives = task
    cutoffs = (1, 3, 10, 25)
    score = ours.evaluator.SimilarityFunction.to_similarity_fn(similarity)
    reference = theirs.InformationRetrievalEvaluator(
        dict(enumerate(queries)),
        dict(enumerate(corpus)),
        {i: set(own) for i, own in enumerate(positives)},
        mrr_at_k=cutoffs,
        ndcg_at_k=cutoffs,
        accuracy_at_k=cutoffs,
        precision_recall_at_k=cutoffs,
        map_at_k=cutoffs,
        score_functions={similarity: score},
        corpus_chunk_size=150,
        write_csv=False,
    )
    expected = reference(encoder)
    evaluator = ours.RetrievalEvaluator(
        queries, corpus, positives, cutoffs=cutoffs, similarity=similarity
    )
    found = evaluator(encoder)
    assert len(found) == 4 * len(cutoffs)
    for name, value in found.items():
        agree(value, expected[f"{similarity}_{name}"])
    assert evaluator.primary_metric == "ndcg@10"
    assert found["recall@25"] > found["recall@3"] > 0
    # The prompt counts: without it the queries' embeddings are others.
    plain = encoder.encode(queries, convert_to_tensor=True)
    documents = encoder.encode(corpus, convert_to_tensor=True)
    other = ours.retrieval_scores(
        plain, documents, positives, cutoffs=cutoffs, similarity=similarity
    )
    assert other != found


def test_retrieval_ties_rank_by_position():
    queries, corpus = torch.eye(2), torch.tensor([[0.0, 1.0], [1, 0], [1, 0], [1, 0]])
    found = ours.retrieval_scores(queries, corpus, [[2], [0]], cutoffs=[1, 2, 100])
    assert found["mrr@1"] == 0.5
    assert found["mrr@2"] == found["mrr@100"] == 0.75
    assert found["ndcg@2"] == pytest.approx((1 / math.log2(3) + 1) / 2)


def test_ranking_with_pads():
    ranked = torch.tensor([[1, 0, -1], [-1, -1, -1]])
    found = ours.ranking_scores(ranked, [[0], [2, 3]], (3,), 4)
    assert found == {"mrr@3": 0.25, "ndcg@3": pytest.approx(1 / math.log2(3) / 2), "recall@3": 0.5,
                     "map@3": 0.25}  # fmt: skip


def clusters(count, classes, spread, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(classes, 12, generator=generator)
    labels = torch.randint(classes, (count,), generator=generator)
    return centers[labels] + spread * torch.randn(count, 12, generator=generator), labels.tolist()


@pytest.mark.parametrize("k", [1, 7])
def test_knn_is_scikit_learns_where_no_vote_is_tied(k):
    # Two classes and odd k: never a tie.
    x, labels = clusters(400, 2, 1.5)
    model = KNeighborsClassifier(k, metric="cosine", algorithm="brute")
    expected = model.fit(x[:300], labels[:300]).score(x[300:], labels[300:])
    found = ours.knn_scores(x[:300], labels[:300], x[300:], labels[300:], k=k)
    assert found["accuracy"] == pytest.approx(expected, abs=1e-12)
    assert 0.6 < expected < 1.0


def test_knn_ties_go_to_the_more_similar_label():
    angles = torch.tensor([0.5, 0.1, 0.2, 0.4])
    train = torch.stack([angles.cos(), angles.sin()], 1)
    test, label = torch.tensor([[1.0, 0.0]]), ["b"]
    # Two votes each; those of "b" are nearer. With the three nearest "b" has the most.
    assert ours.knn_scores(train, list("abba"), test, label, k=4)["accuracy"] == 1.0
    assert ours.knn_scores(train, list("abaa"), test, label, k=3)["accuracy"] == 0.0
    assert ours.knn_scores(train, list("abaa"), test, label, k=1)["accuracy"] == 1.0


def test_knn_without_a_test_set_leaves_one_out():
    x, labels = clusters(120, 4, 1.2)
    right = 0
    for row, label in enumerate(labels):
        rest = [i for i in range(len(x)) if i != row]
        one = ours.knn_scores(x[rest], [labels[i] for i in rest], x[row : row + 1], [label], k=5)
        right += one["accuracy"]
    found = ours.knn_scores(x, labels, k=5)["accuracy"]
    assert found == pytest.approx(right / len(x))
    assert found < 1.0


def test_a_label_that_nobody_has_is_wrong():
    x, _ = clusters(10, 2, 1.0)
    assert ours.knn_scores(x, ["a"] * 10, x[:4], ["a", "z", "a", "z"], k=3)["accuracy"] == 0.5


def test_clustering():
    x, labels = clusters(200, 5, 0.05)
    assert ours.clustering_scores(x, labels)["v_measure"] == pytest.approx(1.0)
    noisy, _ = clusters(200, 5, 2.0)
    low = ours.clustering_scores(noisy, labels)["v_measure"]
    assert 0.0 < low < 0.6
    assert ours.clustering_scores(noisy, labels)["v_measure"] == low
    # Lengths of rows do not count.
    longer = x * torch.linspace(0.1, 9, len(x))[:, None]
    assert ours.clustering_scores(longer, labels)["v_measure"] == pytest.approx(1.0)


def test_geometry_against_its_definitions():
    generator = torch.Generator().manual_seed(0)
    texts = torch.randn(50, 8, generator=generator) + 0.7
    x, y = torch.randn(2, 20, 8, generator=generator)
    found = ours.geometry_scores(texts, x, y)
    unit = normalize(texts.double(), dim=1)
    cosine = unit @ unit.T
    apart = ~torch.eye(50, dtype=torch.bool)
    values = torch.linalg.svdvals(unit - unit.mean(0))
    p = values / values.sum()
    difference = normalize(x, dim=1) - normalize(y, dim=1)
    expected = {
        "alignment": difference.square().sum(1).mean().item(),
        "uniformity": (-2 * (2 - 2 * cosine[apart])).exp().mean().log().item(),
        "anisotropy": cosine[apart].mean().item(),
        "effective_rank": (-(p * p.log()).sum()).exp().item(),
    }
    assert found == pytest.approx(expected, rel=1e-5)
    assert "alignment" not in ours.geometry_scores(texts)


def test_geometry_of_sts_pairs(encoder, pairs):
    found = ours.GeometryEvaluator.of_sts(*pairs)(encoder)
    first, second, gold = pairs
    close = [i for i, score in enumerate(gold) if score >= 4]
    x, y = (encoder.encode([side[i] for i in close], convert_to_tensor=True)
            for side in (first, second))  # fmt: skip
    texts = encoder.encode(list(dict.fromkeys([*first, *second])), convert_to_tensor=True)
    assert found == pytest.approx(ours.geometry_scores(texts, x, y), rel=1e-6)


def test_a_text_is_encoded_once(encoder, monkeypatch):
    seen = []
    encode = encoder.encode
    monkeypatch.setattr(
        encoder, "encode", lambda texts, **options: seen.extend(texts) or encode(texts, **options)
    )
    texts = ["bab fek", "kil", "bab fek", "kil", "non"]
    found = ours.embed(encoder, texts)
    assert seen == ["bab fek", "kil", "non"]
    monkeypatch.undo()
    assert torch.equal(found, encoder.encode(texts, convert_to_tensor=True))


def test_an_evaluator_serves_as_sentence_transformers_own(encoder, pairs):
    evaluator = ours.STSEvaluator(*pairs, name="sts-dev")
    both = theirs.SequentialEvaluator([ours.GeometryEvaluator(pairs[0]), evaluator])
    found = both(encoder)
    assert found["sequential_score"] == found[evaluator.primary_metric]
    assert evaluator.primary_metric == "sts-dev_spearman"
    assert encoder.model_card_data.eval_results_dict[evaluator] == {
        key: value for key, value in found.items() if key.startswith("sts-dev")
    }


BAD = {
    "gold: got 2 scores": lambda x: ours.sts_scores(x, x, [1, 2]),
    "gold: got no two different": lambda x: ours.sts_scores(x, x, [1, 1, 1]),
    "positive, negative": lambda x: ours.triplet_scores(x, x, x[:2]),
    "margin: got nan": lambda x: ours.triplet_scores(x, x, x, margin=math.nan),
    "positives: got 2 lists": lambda x: ours.retrieval_scores(x, x, [[0], [1]]),
    r"positives: got \[3\] for query 2": lambda x: ours.retrieval_scores(x, x, [[0], [1], [3]]),
    r"positives: got \[\]": lambda x: ours.retrieval_scores(x, x, [[0], [1], []]),
    r"positives: got \[1, 1\]": lambda x: ours.retrieval_scores(x, x, [[0], [1], [1, 1]]),
    r"cutoffs: got \[0, 3\]": lambda x: ours.retrieval_scores(x, x, [[0]] * 3, cutoffs=[3, 0]),
    "similarity: got 'manhattan'": lambda x: ours.retrieval_scores(
        x, x, [[0]] * 3, similarity="manhattan"
    ),
    "similarity: got 'l3'": lambda x: ours.GeometryEvaluator(["a", "b"], similarity="l3"),
    "k: got 0": lambda x: ours.knn_scores(x, "aab", k=0),
    "train_labels: got 2": lambda x: ours.knn_scores(x, "ab"),
    "test_labels: expected them": lambda x: ours.knn_scores(x, "aab", x),
    "test_labels: got 1, expected 3": lambda x: ours.knn_scores(x, "aab", x, ["a"]),
    "labels: got 3 of 1 kinds": lambda x: ours.clustering_scores(x, "aaa"),
    "y: expected it with x": lambda x: ours.geometry_scores(x, x),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    with pytest.raises(ValueError, match=message):
        BAD[message](torch.randn(3, 4))
