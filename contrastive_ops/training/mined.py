"""Mined negatives as a column of the training data, found once with the untrained model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

from ..mining.hard_negatives import Rules
from ..mining.pipeline import mine_texts
from ..mining.texts import TextPairs
from .atomic import write_json
from .data import Data
from .settings import Settings


def with_mined_negatives(settings: Settings, data: Data, output: Path) -> Data:
    """Data with columns of negatives, if the settings ask for any.

    A pair whose query has too few is left out. What was mined is kept in ``output/mined.json``: a
    run that is taken up trains on the same.

    Args:
        settings: ``mine`` holds arguments of :func:`contrastive_ops.mine_hard_negatives`,
            ``model`` is what mines.
        data: of pairs.
        output: folder of the run.

    Raises:
        ValueError: an unknown argument, data that is no pairs, or no negatives at all.
    """
    if not settings.mine:
        return data
    if data.texts != ("anchor", "positive"):
        raise ValueError(f"mine: got data with {', '.join(data.texts)}, expected anchor, positive")
    known = [spec.name for spec in dataclasses.fields(Rules)]
    unknown = [name for name in settings.mine if name not in known]
    if unknown:
        raise ValueError(f"mine: got {unknown[0]!r}, expected some of {', '.join(known)}")
    rules = Rules(**({"num_negatives": 1} | settings.mine))
    if not settings.model:
        raise ValueError("mine: got no model, expected one to mine with")
    parts = data.train if isinstance(data.train, dict) else DatasetDict({"": data.train})
    cache = output / "mined.json"
    if cache.exists():
        found = json.loads(cache.read_text(encoding="utf-8"))
    else:
        found = _mine(settings.model, rules, data)
        write_json(cache, found)
    made = {name: _joined(part, found, rules.num_negatives) for name, part in parts.items()}
    if not all(len(part) for part in made.values()):
        raise ValueError(f"mine: got no negatives under {settings.mine}; ask for less")
    names = [_name(i) for i in range(rules.num_negatives)]
    train = DatasetDict(made) if isinstance(data.train, dict) else made[""]
    return dataclasses.replace(data, train=train, texts=(*data.texts, *names))


def _mine(model: str, rules: Rules, data: Data) -> dict[str, list[str]]:
    """Negatives of each query."""
    pairs = TextPairs.of(*data.columns())
    mined = mine_texts(pairs, rules, model)
    return {
        query: [pairs.corpus[j] for j in row if j >= 0]
        for query, row in zip(pairs.queries, mined.indices.tolist(), strict=True)
    }


def _joined(part: Dataset, found: dict[str, list[str]], count: int) -> Dataset:
    rows: dict[str, Any] = {name: list(part[name]) for name in part.column_names}
    keep = [i for i, query in enumerate(rows["anchor"]) if len(found[query]) >= count]
    columns = {name: [column[i] for i in keep] for name, column in rows.items()}
    for number in range(count):
        columns[_name(number)] = [found[rows["anchor"][i]][number] for i in keep]
    return Dataset.from_dict(columns)


def _name(number: int) -> str:
    return "negative" if number == 0 else f"negative_{number + 1}"
