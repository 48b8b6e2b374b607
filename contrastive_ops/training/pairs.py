"""Training pairs: two views of one function, one dataset for each kind of pair."""

from __future__ import annotations

from collections.abc import Sequence

from datasets import Dataset, DatasetDict

from .corpus import Corpus, group_by_shared_keys

#: (anchor view, positive view). Every batch holds pairs of one kind, so that nothing but the
#: meaning tells a key from the others; each kind counts as often as it stands here.
PAIR_KINDS = (
    ("summary", "document"),
    ("summary", "code"),
    ("summary", "rest"),
    ("name", "summary"),
    ("name", "summary"),
)

_MIN_WORDS = 4


def build_pairs(corpus: Corpus, kinds: Sequence[tuple[str, str]] = PAIR_KINDS) -> DatasetDict:
    """Pairs of the training functions, in columns `anchor`, `positive` and `label`.

    Pairs of one kind that share the anchor's or the positive's text, directly or through others,
    have the same label: none of them is a negative for another. Positives of fewer than four
    words are left out.

    Args:
        corpus: held-out functions take no part.
        kinds: pairs of views; one that is given twice is seen twice in an epoch.

    Returns:
        Datasets named `"anchor-positive"`, repetitions `"anchor-positive-2"` and so on.
    """
    rows = corpus.rows("train")
    datasets: dict[str, Dataset] = {}
    for anchor_view, positive_view in kinds:
        kind = f"{anchor_view}-{positive_view}"
        if kind in datasets:
            copies = sum(name.startswith(kind) for name in datasets)
            datasets[f"{kind}-{copies + 1}"] = datasets[kind]
            continue
        pairs = [
            (anchor, positive)
            for anchor, positive in zip(
                corpus.view(anchor_view, rows), corpus.view(positive_view, rows), strict=True
            )
            if len(positive.split()) >= _MIN_WORDS
        ]
        labels = group_by_shared_keys(
            [
                (("anchor", _text(anchor)), ("positive", _text(positive)))
                for anchor, positive in pairs
            ]
        )
        datasets[kind] = Dataset.from_dict(
            {
                "anchor": [anchor for anchor, _ in pairs],
                "positive": [positive for _, positive in pairs],
                "label": labels,
            }
        )
    return DatasetDict(datasets)


def _text(text: str) -> str:
    return " ".join(text.lower().split())
