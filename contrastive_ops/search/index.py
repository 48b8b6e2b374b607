"""An index: documents, their embeddings, and the model that encodes queries."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from ..evaluation.evaluator import embed, load_model
from ..mining.encoding import model_identity
from ..mining.topk import TopK, topk_similarity
from ..tables import Table
from ..training.atomic import atomic_path, remove, write_json
from .embeddings import SHARD_ROWS, dtype_of, encode_to, read_embeddings


@dataclass(frozen=True)
class Index:
    """A folder to search in; ``index.json`` appears last, the sign that it is whole.

    Attributes:
        folder: where it is.
        model: name or folder of the model.
        column: of the documents' table, the one that was encoded.
        rows: how many documents.
    """

    folder: Path
    model: str
    column: str
    rows: int

    @staticmethod
    def is_in(folder: str | os.PathLike[str]) -> bool:
        """Whether a whole index is there."""
        return (Path(folder) / "index.json").is_file()

    @staticmethod
    def build(
        folder: str | os.PathLike[str],
        model: str,
        documents: Table,
        column: str,
        *,
        embeddings: str | None = None,
        dtype: str = "float32",
        batch_size: int = 64,
        shard_rows: int = SHARD_ROWS,
        device: str | None = None,
    ) -> Index:
        """Encode documents, or take embeddings that are there; a killed run goes on.

        Args:
            folder: of the index.
            model: name or folder of a sentence-transformers model.
            documents: the table, of which all columns are kept.
            column: the one to encode.
            embeddings: a file or folder as from :func:`encode_to`, row by row those of `documents`.
            dtype, batch_size, shard_rows: see :func:`encode_to`.
            device: of the model.

        Raises:
            ValueError: an empty text, embeddings of another number of rows or width, or as in
                :func:`encode_to`.
        """
        folder = Path(folder)
        texts = documents.texts(column)
        folder.mkdir(parents=True, exist_ok=True)
        remove(folder / "index.json")
        if embeddings is None:
            encode_to(
                folder / "embeddings.npy",
                load_model(model, device=device),
                texts,
                model_name=model_identity(model),
                dtype=dtype,
                batch_size=batch_size,
                shard_rows=shard_rows,
            )
        else:
            _, rows = read_embeddings(embeddings)
            if rows != len(texts):
                raise ValueError(
                    f"{embeddings}: got {rows} rows, expected {len(texts)}, one for each of "
                    f"{documents.source}"
                )
        try:
            table = pa.Table.from_pydict(documents.columns)
        except pa.ArrowException as error:
            raise ValueError(f"{documents.source}: a column of mixed types: {error}") from None
        with atomic_path(folder / "documents.parquet") as scratch:
            pq.write_table(table, scratch)
        local = Path(model).exists()
        facts = {
            "model": str(Path(model).resolve()) if local else model,
            "column": column,
            "rows": len(texts),
            "embeddings": str(Path(embeddings).resolve()) if embeddings else "embeddings.npy",
        }
        write_json(folder / "index.json", facts)
        return Index.open(folder)

    @staticmethod
    def open(folder: str | os.PathLike[str]) -> Index:
        """The index in a folder.

        Raises:
            ValueError: none is there, or an unfinished one.
        """
        folder = Path(folder)
        if not Index.is_in(folder):
            raise ValueError(f"{folder}: holds no index; `contrastive-ops index` makes one")
        facts = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        return Index(folder, facts["model"], facts["column"], facts["rows"])

    def search(
        self,
        queries: Sequence[str],
        *,
        top: int = 10,
        batch_size: int = 64,
        device: str | None = None,
        backend: str | None = None,
    ) -> TopK:
        """The most similar documents of every query, exactly; see `topk_similarity`.

        Args:
            queries: at least one text.
            top: documents for each, at least 1; fewer where there are not so many.
            batch_size, device: of the encoding.
            backend: see :func:`contrastive_ops.backends`.

        Returns:
            (N, top) scores and rows, by the model's own similarity.

        Raises:
            ValueError: an empty query, `top` below 1, or a model of another width.
        """
        if top < 1:
            raise ValueError(f"top: got {top}, expected at least 1")
        if not queries or not all(query.strip() for query in queries):
            raise ValueError("query: got no text, expected some")
        facts = json.loads((self.folder / "index.json").read_text(encoding="utf-8"))
        corpus, rows = read_embeddings(self.folder / facts["embeddings"])
        model = load_model(self.model, device=device)
        similarity = str(model.similarity_fn_name)
        if similarity == "manhattan":
            raise ValueError(f"{self.model}: its similarity is manhattan, which has no search")
        rows_of = embed(model, queries, "query", batch_size=batch_size).cpu()
        return topk_similarity(
            rows_of.to(dtype_of(corpus)),
            corpus,
            min(top, rows),
            normalize=similarity == "cosine",
            metric="l2" if similarity == "euclidean" else "dot",
            backend=backend,
        )

    def documents(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """Rows of the documents' table."""
        table = pq.read_table(self.folder / "documents.parquet", memory_map=True)
        found: list[dict[str, Any]] = table.take(pa.array(rows, pa.int64())).to_pylist()
        return found
