"""The published recipes as functions; a YAML file beside this one holds the settings of each.

All are configurations of :func:`contrastive_ops.training.run.train` and take the same arguments:

    data: sources, see :class:`Settings`: files, folders of datasets, or names on the hub.
    output: folder of the run; the same call takes up a run that was interrupted.
    seeds: how many seeds to train with; with None one, and the result is that run's.
    restart, export, report, callbacks: see :func:`contrastive_ops.training.run.train`.
    settings: any field of :class:`contrastive_ops.training.settings.Settings`, and ``trainer``: a
        mapping of training arguments.

They return a :class:`contrastive_ops.training.run.Result`, or with ``seeds`` the summary of
:func:`contrastive_ops.training.run.train_seeds`, and raise a ValueError that names what is wrong
with data or settings before they train.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..run import Result, train, train_seeds
from ..settings import load, names

__all__ = [
    "contrastive",
    "distill",
    "sbert_cosine",
    "sbert_softmax",
    "sbert_triplet",
    "simcse_sup",
    "simcse_unsup",
    "static",
]


def _run(
    recipe: str,
    data: str | Path | Sequence[str | Path],
    output: str | Path,
    seeds: int | None,
    settings: dict[str, Any],
    options: dict[str, Any],
) -> Any:
    sources = [data] if isinstance(data, str | Path) else data
    made = load(recipe, {"data": [str(source) for source in sources]}, settings)
    if seeds is None:
        return train(made, output, **options)
    return train_seeds(made, output, seeds, **options)


def _recipe(name: str, text: str) -> Callable[..., Result | dict[str, Any]]:
    def recipe(
        data: str | Path | Sequence[str | Path],
        output: str | Path,
        *,
        seeds: int | None = None,
        restart: bool = False,
        export: bool = False,
        report: bool = True,
        callbacks: Sequence[Any] = (),
        **settings: Any,
    ) -> Any:
        options = {"restart": restart, "export": export, "report": report, "callbacks": callbacks}
        return _run(name, data, output, seeds, settings, options)

    recipe.__name__ = recipe.__qualname__ = name.replace("-", "_")
    recipe.__doc__ = text
    return recipe


simcse_unsup = _recipe(
    "simcse-unsup",
    """Unsupervised SimCSE: each sentence, encoded twice with different dropout, against the others.

    Data: a column ``sentence`` (or ``text``), or a .txt with one sentence a line. The MLP on the
    first token's state is used in training only. The best checkpoint on the development set, looked
    at every 125 steps, is the result. ``mlm_weight=0.1`` adds masked language modelling.

    Source: Gao et al. 2021, "SimCSE: Simple Contrastive Learning of Sentence Embeddings"
    (arXiv 2104.08821), section 3 and appendix A.
    """,
)
simcse_sup = _recipe(
    "simcse-sup",
    """Supervised SimCSE: a premise against what it entails, all others, and all contradictions.

    Data: ``anchor``, ``positive``, ``negative``, or SimCSE's ``sent0``, ``sent1``, ``hard_neg``.
    ``hard_negative_weight`` is α, the weight of a premise's own contradiction.

    Source: Gao et al. 2021 (arXiv 2104.08821), section 4, eq. 5 and appendix A.
    """,
)
sbert_softmax = _recipe(
    "sbert-softmax",
    """Sentence-BERT on NLI: a linear layer over [u; v; |u - v|] tells the class of a pair.

    Data: ``sentence1``, ``sentence2`` (or ``premise``, ``hypothesis``) and ``label``, a name or
    number among ``labels``. The layer is used in training only; inference is by cosine.

    Source: Reimers and Gurevych 2019, "Sentence-BERT" (arXiv 1908.10084), section 3.
    """,
)
sbert_cosine = _recipe(
    "sbert-cosine",
    """Sentence-BERT on STS: the cosine of a pair is its score.

    Data: ``sentence1``, ``sentence2`` and ``score`` within ``score_range``, which becomes [0, 1].

    Source: Reimers and Gurevych 2019 (arXiv 1908.10084), sections 3 and 4.2.
    """,
)
sbert_triplet = _recipe(
    "sbert-triplet",
    """Sentence-BERT's triplet loss, max(0, d(a, p) - d(a, n) + margin).

    Data: ``anchor``, ``positive``, ``negative``; or ``text`` and ``label``, from which ``mining``
    chooses the triplets of a batch (``batch_sampler="group_by_label"`` gives it some).

    Source: Reimers and Gurevych 2019 (arXiv 1908.10084), section 3; mining: Schroff et al. 2015,
    "FaceNet" (arXiv 1503.03832).
    """,
)
static = _recipe(
    "static",
    """An averaging encoder from nothing: the mean of token vectors, in seconds on a CPU.

    The vectors start at random, as long as the token is rare (a random projection of TF-IDF), and
    learn from pairs or triplets; every prefix in ``matryoshka_dims`` is an embedding, too. With
    ``model`` an existing static model is trained on.

    Data: ``anchor``, ``positive`` and maybe ``negative``.

    Source: Wieting et al. 2016, "Towards Universal Paraphrastic Sentence Embeddings"
    (arXiv 1511.08198); Kusupati et al. 2022, "Matryoshka Representation Learning"
    (arXiv 2205.13147).
    """,
)
distill = _recipe(
    "distill",
    """A student learns a ``teacher``'s embeddings of sentences, and of their translations.

    Data: ``source`` (or ``english``) and maybe ``target`` (``non_english``). The loss is
    ``mse_weight`` times the squared distance to the teacher's embedding of the source, plus
    ``kl_weight`` times the divergence of the batch's similarities from the teacher's.

    Source: Reimers and Gurevych 2020, "Making Monolingual Sentence Embeddings Multilingual using
    Knowledge Distillation" (arXiv 2004.09813).
    """,
)
contrastive = _recipe(
    "contrastive",
    """Anything contrastive: InfoNCE with every option, or SupCon on labels.

    Data: ``anchor``, ``positive`` and maybe ``negative`` columns or lists, such as FlagEmbedding's
    ``query``, ``pos``, ``neg``; a single ``sentence``; or ``text`` and ``label`` with
    ``objective="sup_con"``. ``guide`` (GIST), ``matryoshka_dims``, ``mine`` (negatives that the
    untrained model finds), ``queue`` and ``momentum`` with the view ``repeat`` (ESimCSE).

    Source: Solatorio 2024, "GISTEmbed" (arXiv 2402.16829); Kusupati et al. 2022
    (arXiv 2205.13147); Wu et al. 2022, "ESimCSE" (arXiv 2109.04380); Khosla et al. 2020,
    "Supervised Contrastive Learning" (arXiv 2004.11362).
    """,
)

assert {name.replace("-", "_") for name in names()} == set(__all__)
