"""De-duplication, groups, and a split that leaks nothing."""

from __future__ import annotations

import dataclasses

import pytest

from contrastive_ops.training.corpus import Corpus, build_corpus, group_by_shared_keys


def test_groups_are_connected_components():
    keys = [["a"], ["b"], ["c", "a"], [], ["b", "d"], ["d", "c"], ["e"]]
    assert group_by_shared_keys(keys) == [0, 0, 0, 3, 0, 0, 6]


def test_exact_duplicates_are_dropped_whatever_their_case_and_layout(functions):
    copy = dataclasses.replace(
        functions[0],
        package="other",
        summary=functions[0].summary.upper(),
        code=functions[0].code.replace("\n", "\n\n"),
    )
    corpus = build_corpus([*functions, copy], queries=10, seed=0)
    assert corpus.functions == functions


def body(function):
    """Code below the signature, where it is long enough to tell functions apart."""
    _, _, below = function.code.partition("\n")
    return below if len(below) > 70 else ""


def test_held_out_functions_share_nothing_with_any_other(functions):
    filler = "This sentence is long enough to count as a text of its own, and is shared."
    twins = [
        dataclasses.replace(f, name=f"{f.name}_{side}", summary=f"{f.summary} {side}", rest=filler)
        for side in "ab"
        for f in functions[:1]
    ]
    same_summary = [dataclasses.replace(f, code="def g(): pass") for f in functions[1:100]]
    renamed = [
        dataclasses.replace(
            f,
            summary=f"Another {number} of them.",
            rest="",
            code=f.code.replace(f.name, "h") + "\n    # " + "a comment to make the body long " * 2,
        )
        for number, f in enumerate(functions[100:200])
    ]
    again = [dataclasses.replace(f, summary=f"Yet {f.summary}") for f in renamed]
    corpus = build_corpus([*functions, *twins, *same_summary, *renamed, *again], queries=90, seed=1)
    assert len(corpus.rows("dev")) == len(corpus.rows("test")) == 90
    for row in [*corpus.rows("dev"), *corpus.rows("test")]:
        own = corpus.functions[row]
        others = [f for other, f in enumerate(corpus.functions) if other != row]
        assert own.summary not in {f.summary for f in others}
        assert own.rest not in {f.rest for f in others if f.rest}
        body = own.code.split("\n", 1)[1]
        assert body not in {
            f.code.split("\n", 1)[1] for f in others if "\n" in f.code and len(body) > 70
        }


def test_split_is_a_partition_drawn_by_the_seed(functions):
    first, again, other = (build_corpus(functions, queries=40, seed=seed) for seed in (3, 3, 4))
    assert first.split == again.split
    assert first.split != other.split
    rows = [row for split in ("train", "dev", "test") for row in first.rows(split)]
    assert sorted(rows) == list(range(len(functions)))


def test_views(corpus):
    function = corpus.functions[5]
    assert corpus.view("name", [5]) == [function.name]
    (document,) = corpus.view("document", [5])
    assert document == f"{function.rest}\n{function.name}\n{function.code}"
    assert function.summary not in document
    assert len(corpus.view("code")) == len(corpus.functions)
    with pytest.raises(ValueError, match="view: expected one of name, summary"):
        corpus.view("body")


def test_save_and_load(corpus, tmp_path):
    corpus.save(tmp_path / "folder" / "corpus.parquet")
    assert Corpus.load(tmp_path / "folder" / "corpus.parquet") == corpus


@pytest.mark.parametrize("queries", [0, 106, 10_000])
def test_too_few_functions(functions, queries):
    with pytest.raises(ValueError, match=f"queries: expected .* got {queries}"):
        build_corpus(functions, queries=queries, seed=0)
