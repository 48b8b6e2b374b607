"""Evaluators from files: what each option of `contrastive-ops evaluate` reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..mining.texts import TextPairs
from ..tables import read_columns, read_table, split_source
from .clustering import ClusteringEvaluator
from .geometry import GeometryEvaluator
from .knn import KNNEvaluator
from .retrieval import RetrievalEvaluator
from .sts import STSEvaluator
from .triplets import TripletEvaluator


def task_name(source: str) -> str:
    """``stsb/dev`` of ``.../stsb/dev.tsv:score,a,b``."""
    path = Path(split_source(source)[0])
    return "/".join([path.parent.name, path.stem] if path.parent.name else [path.stem])


def read_sts(sources: Sequence[str], **options: Any) -> STSEvaluator:
    """Pairs with gold scores, of one file or of several, which are then scored together."""
    if len(set(sources)) < len(sources):
        raise ValueError(f"sts: got a file twice in {' '.join(sources)}")
    first, second, gold = {}, {}, {}
    for source in sources:
        table, (one, other, score) = read_columns(source, "sentence1", "sentence2", "score")
        key = Path(table.source).stem
        if key in gold:
            raise ValueError(f"sts: got two files of the name {key}")
        first[key], second[key] = table.texts(one), table.texts(other)
        gold[key] = table.numbers(score)
        if len(set(gold[key])) < 2:
            raise ValueError(f"{table.source}: got no two different values of {score}")
    options.setdefault("name", _common_name(sources))
    if len(gold) == 1:
        return STSEvaluator(first[key], second[key], gold[key], **options)
    return STSEvaluator(first, second, gold, **options)


def _common_name(sources: Sequence[str]) -> str:
    names = [task_name(source) for source in sources]
    parents = {name.rpartition("/")[0] for name in names}
    if len(names) > 1 and len(parents) == 1 and "" not in parents:
        return parents.pop()
    return "+".join(names)


def read_retrieval(
    source: str, corpus: str | None = None, *, backend: str | None = None, **options: Any
) -> RetrievalEvaluator:
    """Queries and the documents that answer them, among all documents.

    Args:
        source: a table of pairs, in which a query may come again and a cell may hold several
            documents; or a folder in BEIR's layout.
        corpus: a table of further documents.
        backend, options: see :class:`RetrievalEvaluator`.
    """
    options.setdefault("name", task_name(source))
    if (Path(source) / "corpus.jsonl").is_file():
        return RetrievalEvaluator(*_read_beir(Path(source)), backend=backend, **options)
    table, (query, document) = read_columns(source, "anchor", "positive")
    lists = table.text_lists(document)
    queries = [q for q, own in zip(table.texts(query), lists, strict=True) for _ in own]
    further = []
    if corpus is not None:
        others, (name,) = read_columns(corpus, "sentence")
        further = others.texts(name)
    pairs = TextPairs.of(queries, [text for own in lists for text in own], further)
    return RetrievalEvaluator(
        pairs.queries, pairs.corpus, pairs.positives, backend=backend, **options
    )


def _read_beir(folder: Path) -> tuple[list[str], list[str], list[list[int]]]:
    """Queries that have answers, documents with their titles, and which answer which."""
    qrels = folder / "qrels" / "test.tsv"
    corpus, queries, judged = (
        read_table(str(path)) for path in (folder / "corpus.jsonl", folder / "queries.jsonl", qrels)
    )
    corpus.need("_id", "text")
    queries.need("_id", "text")
    judged.need("query-id", "corpus-id", "score")
    titles = corpus.columns.get("title", [""] * len(corpus))
    texts = [
        f"{title} {text}".strip()
        for title, text in zip(titles, corpus.columns["text"], strict=True)
    ]
    place = {str(key): i for i, key in enumerate(corpus.columns["_id"])}
    text_of = dict(zip(map(str, queries.columns["_id"]), queries.texts("text"), strict=True))
    positives: dict[str, dict[int, None]] = {}
    scores = judged.numbers("score")
    for row, (query, document) in enumerate(
        zip(judged.columns["query-id"], judged.columns["corpus-id"], strict=True)
    ):
        if query not in text_of or document not in place:
            raise ValueError(f"{judged.where(row)}: got an unknown id, {query!r} or {document!r}")
        if scores[row] > 0:
            positives.setdefault(query, {})[place[document]] = None
    return [text_of[query] for query in positives], texts, [list(p) for p in positives.values()]


def read_triplets(source: str, **options: Any) -> TripletEvaluator:
    """Anchors, positives and negatives."""
    table, names = read_columns(source, "anchor", "positive", "negative")
    anchor, positive, negative = (table.texts(name) for name in names)
    options.setdefault("name", task_name(source))
    return TripletEvaluator(anchor, positive, negative, **options)


def read_labelled(source: str) -> tuple[list[str], list[str]]:
    """Texts and their labels."""
    table, (label, text) = read_columns(source, "label", "sentence")
    return table.texts(text), table.labels(label)


def read_knn(sources: Sequence[str], *, k: int, **options: Any) -> KNNEvaluator:
    """Labelled texts, and others to classify by them; of one table each text by the others."""
    if len(sources) > 2:
        raise ValueError(f"knn: got {len(sources)} tables, expected TRAIN or TRAIN TEST")
    options.setdefault("name", task_name(sources[-1]))
    columns = [column for source in sources for column in read_labelled(source)]
    return KNNEvaluator(columns[0], columns[1], *columns[2:], k=k, **options)


def read_clustering(source: str, *, seed: int = 0, **options: Any) -> ClusteringEvaluator:
    """Labelled texts."""
    texts, labels = read_labelled(source)
    if len(set(labels)) < 2:
        raise ValueError(f"{source}: got the one label {labels[0]!r}, expected several")
    options.setdefault("name", task_name(source))
    return ClusteringEvaluator(texts, labels, seed=seed, **options)


def read_geometry(source: str, **options: Any) -> GeometryEvaluator:
    """Pairs with gold scores, of which those of 4 and more are close; or pairs, all close."""
    options.setdefault("name", task_name(source))
    names = split_source(source)[1]
    table = read_table(split_source(source)[0])
    if (names is None and "score" in table.columns) or len(names or ()) == 3:
        table, (first, second, score) = read_columns(source, "sentence1", "sentence2", "score")
        gold = table.numbers(score)
        return GeometryEvaluator.of_sts(table.texts(first), table.texts(second), gold, **options)
    table, (first, second) = read_columns(source, "anchor", "positive")
    x, y = table.texts(first), table.texts(second)
    return GeometryEvaluator([*x, *y], x, y, **options)
