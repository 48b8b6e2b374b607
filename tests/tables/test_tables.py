"""Tables: formats, columns by role, and the line of what is wrong."""

from __future__ import annotations

import json

import pytest

from contrastive_ops.mining.texts import read_texts
from contrastive_ops.tables import read_columns, read_development_set, read_table

ROWS = [("4.5", 'say "a, b"', "zwei\u2028drei"), ("0", "'tis", "é")]


def write(path, kind):
    names = ("score", "sentence1", "sentence2")
    if kind == "tsv":
        path.write_text("\n".join("\t".join(row) for row in (names, *ROWS)) + "\n", "utf-8")
    elif kind == "csv":
        cells = (['"' + cell.replace('"', '""') + '"' for cell in row] for row in (names, *ROWS))
        path.write_text("\r\n".join(",".join(row) for row in cells), "utf-8")
    elif kind == "jsonl":
        lines = (json.dumps(dict(zip(names, row, strict=True))) for row in ROWS)
        path.write_text("\n\n".join(lines), "utf-8")
    else:
        from datasets import Dataset

        data = Dataset.from_list([dict(zip(names, row, strict=True)) for row in ROWS])
        data.to_parquet(path) if kind == "parquet" else data.save_to_disk(path)
    return str(path)


@pytest.mark.parametrize("kind", ["tsv", "csv", "jsonl", "parquet", "dataset"])
def test_formats(tmp_path, kind):
    source = write(tmp_path / f"table.{kind}", kind)
    table, (first, second, score) = read_columns(source, "sentence1", "sentence2", "score")
    assert (first, second, score) == ("sentence1", "sentence2", "score")
    columns = (table.columns[score], table.texts(first), table.texts(second))
    assert list(zip(*columns, strict=True)) == ROWS
    assert table.numbers(score) == [4.5, 0.0]
    line = {"tsv": "line 3", "csv": "line 3", "jsonl": "line 3"}.get(kind, "row 2")
    assert table.where(1) == f"{source}, {line}"
    # The same reader keeps some columns only, as mining does.
    assert read_texts(f"{source}:sentence2,sentence1", 2) == [[c for *_, c in ROWS], columns[1]]
    assert list(read_table(source, columns=2).columns) == ["score", "sentence1"]
    with pytest.raises(ValueError, match="sentence2, expected nothing"):
        read_texts(f"{source}:nothing", 1)
    with pytest.raises(ValueError, match=r"got the columns .*sentence2, expected at least 4"):
        read_texts(source, 4)


@pytest.mark.parametrize(
    ("header", "suffix", "roles", "expected"),
    [
        ("intent\ttext", "", ("label", "sentence"), ("intent", "text")),
        ("question\tsentence", "", ("anchor", "positive"), ("question", "sentence")),
        ("source\tanchor\tpositive", "", ("anchor", "positive"), ("anchor", "positive")),
        ("a\tb", "", ("anchor", "positive"), ("a", "b")),
        ("a\tb\tc", ":c,a", ("anchor", "positive"), ("c", "a")),
    ],
)
def test_columns_by_role(tmp_path, header, suffix, roles, expected):
    path = tmp_path / "t.tsv"
    path.write_text(f"{header}\n" + "\t".join("xyz"[: header.count("\t") + 1]) + "\n")
    assert read_columns(f"{path}{suffix}", *roles)[1] == expected


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    (tmp_path / "a.tsv").write_text("q\ta\r\nx\ty\r\n", encoding="utf-8-sig")
    (tmp_path / "a.csv").write_text("q,a\r\nx,y\r\n", encoding="utf-8-sig")
    (tmp_path / "a.jsonl").write_text('{"q": "x", "a": "y"}\n', encoding="utf-8-sig")
    for name in ("a.tsv", "a.csv", "a.jsonl"):
        assert read_table(str(tmp_path / name)).columns == {"q": ["x"], "a": ["y"]}


def test_a_text_a_line(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("one\r\n\n two\tthree \n", "utf-8")
    table = read_table(str(path))
    assert table.columns == {"sentence": ["one", "two\tthree"]}
    assert list(table.lines) == [1, 3]


def test_splits(tmp_path):
    from datasets import Dataset, DatasetDict

    parts = {name: Dataset.from_dict({"text": [name]}) for name in ("train", "odd", "validation")}
    DatasetDict(parts).save_to_disk(tmp_path / "data")
    path = str(tmp_path / "data")
    assert read_table(path).columns == {"text": ["validation"]}
    assert read_table(path, splits=("train",)).columns == {"text": ["train"]}
    assert read_table(path, splits=("dev",)).columns == {"text": ["train"]}
    assert read_table(f"{path}@odd").columns == {"text": ["odd"]}
    with pytest.raises(ValueError, match="got the splits train, odd, validation, expected test"):
        read_table(f"{path}@test")


def test_quoted_line_breaks_and_the_lines_after_them(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('text,label\n"one\ntwo",a\nthree,\n', "utf-8")
    table = read_table(str(path))
    assert table.columns["text"] == ["one\ntwo", "three"]
    with pytest.raises(ValueError, match=r"t\.csv, line 4: got '' as label"):
        table.labels("label")


BAD = {
    "no such file": ("t.tsv", None),
    "got no rows": ("t.tsv", b"a\tb\n"),
    "line 2: got a carriage return inside the line": ("t.tsv", b"a\tb\nx\ry\tz\n"),
    "line 2: no JSON: maximum recursion": ("t.jsonl", b'{"a": 1}\n' + b"[" * 100_000),
    "line 3: byte 0xff is no UTF-8": ("t.tsv", b"a\tb\nx\ty\nx\t\xff\n"),
    "line 3: got 1 cells, expected 2: a, b": ("t.tsv", b"a\tb\nx\ty\nx\n"),
    "line 1: got a column name twice": ("t.tsv", b"a\ta\nx\ty\n"),
    "line 2: unexpected end of data": ("t.csv", b'a,b\n"x,y\nz,z\n'),
    "line 2: no JSON": ("t.jsonl", b'{"a": 1}\n{"a": \n'),
    "line 2: got no JSON object": ("t.jsonl", b'{"a": 1}\n[]\n'),
    "got a file of another kind, expected .tsv, .csv": ("t.tsv.gz", b"x"),
    "magic bytes": ("t.parquet", b"this is no parquet file"),
    "line 4: got no 'a'": ("t.jsonl", b'{"a": 1}\n\n\n{"b": 1}\n'),
}


@pytest.mark.parametrize("message", BAD)
def test_a_bad_file(tmp_path, message):
    name, content = BAD[message]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_table(str(tmp_path / name))
    assert str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize(
    ("method", "cell", "message"),
    [
        ("texts", " ", "line 3: got no text in a"),
        ("texts", 7, "line 3: got 7 as a, expected a text"),
        ("texts", "\ud800", "line 3: a: .*surrogates not allowed"),
        ("text_lists", ["x", ""], "line 3: got no text in a"),
        ("text_lists", [], "line 3: got no text in a"),
        ("numbers", "abc", "line 3: got 'abc' as a, expected a finite number"),
        ("numbers", "nan", "line 3: got 'nan' as a"),
        ("numbers", None, "line 3: got None as a"),
        ("numbers", True, "line 3: got True as a"),
        ("labels", 0.5, "line 3: got 0.5 as a"),
        ("labels", None, "line 3: got None as a"),
        ("labels", ["x"], r"line 3: got \['x'\] as a"),
    ],
)
def test_a_bad_cell(tmp_path, method, cell, message):
    path = tmp_path / "t.jsonl"
    good = {"numbers": 1}.get(method, "x")
    path.write_text(json.dumps({"a": good}) + "\n\n" + json.dumps({"a": cell}) + "\n")
    table = read_table(str(path))
    with pytest.raises(ValueError, match=message):
        getattr(table, method)("a")


def test_labels_are_words_or_whole_numbers(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"a": 3}\n{"a": "x"}\n')
    assert read_table(str(path)).labels("a") == ["3", "x"]


@pytest.mark.parametrize(
    ("suffix", "message"),
    [
        ("", r"got the columns a, b, c; expected anchor, positive; name those to take"),
        (":a", "got 1 columns, expected 2: anchor, positive"),
        (":a,z", "got the columns a, b, c, expected z"),
        (":", "t.tsv:: got no name after the colon or a comma, expected columns"),
    ],
)
def test_missing_columns(tmp_path, suffix, message):
    path = tmp_path / "t.tsv"
    path.write_text("a\tb\tc\nx\ty\tz\n")
    with pytest.raises(ValueError, match=message):
        read_columns(f"{path}{suffix}", "anchor", "positive")


@pytest.mark.parametrize(
    ("header", "named", "kind", "columns"),
    [
        ("score\tsentence1\tsentence2", "", "sts", ["sentence1", "sentence2", "score"]),
        ("intent\ttext", "", "knn", ["text", "intent"]),
        ("question\tsentence", "", "retrieval", ["question", "sentence"]),
        ("a\tb\tc", ":c,a,b", "sts", ["c", "a", "b"]),
        ("a\tb\tc", ":c,a", "retrieval", ["c", "a"]),
    ],
)
def test_a_development_set_is_told_by_its_columns(tmp_path, header, named, kind, columns):
    path = tmp_path / "t.tsv"
    path.write_text(f"{header}\n" + "\t".join("123"[: header.count("\t") + 1]) + "\n")
    found, table, names = read_development_set(f"{path}{named}")
    assert (found, names, len(table)) == (kind, columns, 1)
    with pytest.raises(ValueError, match=r"got the columns .*, expected x, y$"):
        read_development_set(f"{path}:x,y")


def test_a_column_that_says_where_a_row_is_from_is_no_text(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text("source\tanchor\tpositive\nsnli\tone\ttwo\n")
    assert read_columns(str(path), "source", "target")[1] == ("anchor", "positive")
