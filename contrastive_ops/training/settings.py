"""What a run is made of: one flat record that a recipe's YAML file, Python and flags fill in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "recipes"

#: Objectives, and the columns that each takes from a source.
OBJECTIVES = ("info_nce", "sup_con", "triplet", "softmax", "cosine", "distill")
POOLERS = (
    "cls",
    "cls-before-pooler",
    "mean",
    "max",
    "first-last",
    "top-2",
    "last-token",
    "mask-token",
    "weighted",
)
HEADS = ("none", "train-only", "kept")


def _about(
    group: str, text: str, choices: tuple[str, ...] = (), metavar: str = ""
) -> dict[str, Any]:
    return {"group": group, "help": text, "choices": choices, "metavar": metavar}


@dataclass(frozen=True)
class Settings:
    """Settings of a training run. A recipe's YAML file says which differ from the defaults here.

    ``help`` of each field (and ``contrastive-ops train RECIPE --help``) says what it means.

    Raises:
        ValueError: a value out of its range; the message names the setting.
    """

    recipe: str
    # Data
    data: list[str] = field(
        default_factory=list,
        metadata=_about(
            "data",
            "sources: PATH or PATH:COLUMN,COLUMN of a .tsv, .csv, .jsonl, .parquet or .txt, "
            "the folder of a dataset, or a hub name with @SPLIT; *W after it weighs it "
            "among several",
            metavar="SOURCE",
        ),
    )
    sampling: str = field(
        default="proportional",
        metadata=_about(
            "data",
            "of several sources: batches of one source each, in proportion to their sizes "
            "or in turn, or rows of all mixed by their weights",
            choices=("proportional", "round-robin", "mixed"),
        ),
    )
    evaluate: list[str] = field(
        default_factory=list,
        metadata=_about(
            "data",
            "development sets, NAME=PATH: pairs with scores, texts with labels, or "
            "questions with answers, told by their columns",
            metavar="NAME=PATH",
        ),
    )
    negatives: int = field(
        default=1,
        metadata=_about(
            "data",
            "of each row with a list of negatives, as many are taken, again from the start",
        ),
    )
    labels: list[str] = field(
        default_factory=list,
        metadata=_about(
            "data",
            "classes in order; a number is a position among them (default: those found)",
        ),
    )
    score_range: list[float] = field(
        default_factory=lambda: [0.0, 1.0],
        metadata=_about(
            "data",
            "lowest and highest score",
        ),
    )
    # Model
    model: str = field(
        default="",
        metadata=_about(
            "model",
            "backbone: a hub name or a folder; `static` needs none",
        ),
    )
    pooler: str = field(
        default="",
        metadata=_about(
            "model",
            "how token states become one (default: the model's own, or mean)",
            choices=("", *POOLERS),
        ),
    )
    head: str = field(
        default="none",
        metadata=_about(
            "model",
            "an MLP on the embedding: in training only, or kept in the model",
            choices=HEADS,
        ),
    )
    template: str = field(
        default="",
        metadata=_about(
            "model",
            "prompt around a text, {} standing for it, such as 'This: \"{}\" means [MASK].'",
            metavar="TEXT",
        ),
    )
    max_length: int = field(
        default=0,
        metadata=_about(
            "model",
            "tokens of a text at most (default: the model's own)",
        ),
    )
    lora: dict[str, Any] = field(
        default_factory=dict,
        metadata=_about(
            "model",
            "low-rank adapters: arguments of peft's LoraConfig, such as {r: 16}",
        ),
    )
    dim: int = field(
        default=1024,
        metadata=_about(
            "model",
            "width of a static model's embeddings",
        ),
    )
    vocabulary: int = field(
        default=8000,
        metadata=_about(
            "model",
            "word pieces of a static model",
        ),
    )
    # Objective
    objective: str = field(
        default="info_nce",
        metadata=_about(
            "objective",
            "the loss",
            choices=OBJECTIVES,
        ),
    )
    temperature: float = field(
        default=0.05,
        metadata=_about(
            "objective",
            "divides the similarities",
        ),
    )
    learnable_temperature: bool = field(
        default=False,
        metadata=_about(
            "objective",
            "trains the temperature, too",
        ),
    )
    symmetric: bool = field(
        default=False,
        metadata=_about(
            "objective",
            "info_nce: keys also look for their queries",
        ),
    )
    gather_across_devices: bool = field(
        default=False,
        metadata=_about(
            "objective",
            "info_nce: the texts of all processes are candidates",
        ),
    )
    hard_negative_weight: float = field(
        default=1.0,
        metadata=_about(
            "objective",
            "info_nce: weight α of a row's own negatives in its denominator",
        ),
    )
    false_negative_margin: float | None = field(
        default=None,
        metadata=_about(
            "objective",
            "info_nce: leaves out keys more similar than the positive by this",
        ),
    )
    matryoshka_dims: list[int] = field(
        default_factory=list,
        metadata=_about(
            "objective",
            "info_nce: prefixes that are trained, too",
        ),
    )
    guide: str = field(
        default="",
        metadata=_about(
            "objective",
            "info_nce: a frozen model that says which candidates are no negatives (GIST)",
        ),
    )
    guide_margin: float = field(
        default=0.0,
        metadata=_about(
            "objective",
            "how far below the positive a guide's score must be",
        ),
    )
    queue: int = field(
        default=0,
        metadata=_about(
            "objective",
            "info_nce: keys of past batches that are negatives, too",
        ),
    )
    momentum: float = field(
        default=0.995,
        metadata=_about(
            "objective",
            "info_nce: of the moving average of the encoder that fills the queue",
        ),
    )
    mine: dict[str, Any] = field(
        default_factory=dict,
        metadata=_about(
            "objective",
            "mines negatives with the untrained model: settings of mine_hard_negatives",
        ),
    )
    margin: float = field(
        default=1.0,
        metadata=_about(
            "objective",
            "triplet: in units of the distance",
        ),
    )
    distance: str = field(
        default="l2",
        metadata=_about(
            "objective",
            "triplet: between embeddings",
            choices=("l2", "sq_l2", "cosine"),
        ),
    )
    mining: str = field(
        default="semi-hard",
        metadata=_about(
            "objective",
            "triplet, on texts with labels: which triplets of a batch",
            choices=("all", "hard", "semi-hard", "easy", "violator"),
        ),
    )
    teacher: str = field(
        default="",
        metadata=_about(
            "objective",
            "distill: the model to learn from",
        ),
    )
    mse_weight: float = field(
        default=1.0,
        metadata=_about(
            "objective",
            "distill: of the squared distances of embeddings",
        ),
    )
    kl_weight: float = field(
        default=1.0,
        metadata=_about(
            "objective",
            "distill: of the divergence of the batch's similarities",
        ),
    )
    mlm_weight: float = field(
        default=0.0,
        metadata=_about(
            "objective",
            "of masked language modelling beside the loss",
        ),
    )
    mlm_probability: float = field(
        default=0.15,
        metadata=_about(
            "objective",
            "share of tokens that it masks",
        ),
    )
    backend: str | None = field(
        default=None,
        metadata=_about(
            "objective",
            "of the loss (default: the fastest that works)",
        ),
    )
    # Views
    views: list[str] = field(
        default_factory=list,
        metadata=_about(
            "views",
            "changes of the positives (and negatives) in training, NAME or NAME:RATE: "
            "dropout, repeat, delete, delete-one, crop, shuffle, token-cutoff, "
            "feature-cutoff",
        ),
    )
    anchor_views: list[str] = field(
        default_factory=list,
        metadata=_about(
            "views",
            "the same for the anchors",
        ),
    )
    dropout: float | None = field(
        default=None,
        metadata=_about(
            "views",
            "sets the backbone's dropout probability",
        ),
    )
    # Run
    trainer: dict[str, Any] = field(
        default_factory=dict,
        metadata=_about(
            "",
            "training arguments",
        ),
    )

    def __post_init__(self) -> None:
        for spec in fields(self):
            _check(spec.name, getattr(self, spec.name), str(spec.type), spec.metadata)
        if "output_dir" in self.trainer:
            raise ValueError("trainer: got output_dir, expected none: the run's folder is output")
        for name in ("temperature", "hard_negative_weight"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected a positive number")
        for name in (
            "mlm_weight",
            "mse_weight",
            "kl_weight",
            "queue",
            "max_length",
            "guide_margin",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 0")
        for name in ("negatives", "dim", "vocabulary"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        for name, high in (("momentum", 1.0), ("mlm_probability", 1.0)):
            if not 0 <= getattr(self, name) < high:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected it in [0, 1)")
        if any(dim < 1 for dim in self.matryoshka_dims):
            raise ValueError(
                f"matryoshka_dims: got {self.matryoshka_dims}, expected each at least 1"
            )
        if len(self.score_range) != 2 or not self.score_range[0] < self.score_range[1]:
            raise ValueError(f"score_range: got {self.score_range}, expected [LOW, HIGH]")
        if self.template and "{}" not in self.template:
            raise ValueError(f"template: got {self.template!r}, expected {{}} where the text goes")

    def to_dict(self) -> dict[str, Any]:
        """What YAML and JSON can hold."""
        return asdict(self)


def load(recipe: str, *changes: Mapping[str, Any]) -> Settings:
    """A recipe's settings with changes, the later ones first; ``trainer`` is merged key by key.

    Args:
        recipe: its name, the stem of a file in ``training/recipes``.
        changes: settings by name.

    Raises:
        ValueError: an unknown recipe or setting, or a value out of range.
    """
    if recipe not in names():
        raise ValueError(f"recipe: got {recipe!r}, expected one of {', '.join(names())}")
    values: dict[str, Any] = {"recipe": recipe, "trainer": {}}
    known = {spec.name for spec in fields(Settings)}
    for change in (read_yaml(FOLDER / f"{recipe}.yaml"), *changes):
        for name, value in change.items():
            if name not in known:
                raise ValueError(f"{name}: no such setting; expected some of {_listed(known)}")
            if name == "recipe" and value != recipe:
                raise ValueError(f"recipe: got the settings of {value!r}, expected {recipe!r}")
            values[name] = values[name] | dict(value) if name == "trainer" else value
    return Settings(**values)


def names() -> list[str]:
    """Names of all recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file of settings.

    Raises:
        ValueError: a file that is missing or holds something else.
    """
    import yaml

    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file")
    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: no YAML: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: got {type(found).__name__}, expected settings by name")
    return found


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names - {"recipe"}))


_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "str": ((str,), "a word"),
    "int": ((int,), "an integer"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
    "list[str]": ((list, tuple), "a list of words"),
    "list[int]": ((list, tuple), "a list of integers"),
    "list[float]": ((list, tuple), "a list of numbers"),
    "dict[str, Any]": ((dict,), "a mapping"),
}


def _check(name: str, value: Any, kind: str, metadata: Mapping[str, Any]) -> None:
    optional = kind.endswith(" | None")
    if value is None and optional:
        return
    types, expected = _KINDS[kind.removesuffix(" | None")]
    fits = isinstance(value, types) and (isinstance(value, bool) == (types == (bool,)))
    if fits and kind.startswith("list"):
        inner = _KINDS[kind[5:-1]][0]
        fits = all(isinstance(v, inner) and not isinstance(v, bool) for v in value)
    if not fits:
        raise ValueError(f"{name}: got {value!r}, expected {expected}")
    for number in value if isinstance(value, list | tuple) else [value]:
        if isinstance(number, float) and not math.isfinite(number):
            raise ValueError(f"{name}: got {value!r}, expected finite numbers")
    choices = metadata.get("choices")
    if choices and value not in choices:
        raise ValueError(
            f"{name}: got {value!r}, expected one of {', '.join(filter(None, choices))}"
        )
