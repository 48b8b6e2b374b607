"""Module twins of the objectives: what is fixed for a run in the constructor, tensors in the call.

Each takes its function's keyword arguments, in the constructor or in the call (which wins), and
documents nothing again. Where the function has a temperature it may be learned:
``learnable_temperature``, ``min_temperature`` and ``max_temperature`` are those of
:class:`contrastive_ops.losses.Temperature`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .. import functional
from ..losses import Temperature
from .decorrelation import GroupZCA, Whitening
from .heads import PairSoftmaxLoss
from .queues import EmbeddingQueue, QueueBank

_LEARNING = ("learnable_temperature", "min_temperature", "max_temperature")


class Objective(nn.Module):
    """A function of :mod:`contrastive_ops.functional` with its options.

    Raises:
        TypeError: an option that the function does not have.
    """

    function: ClassVar[Callable[..., Tensor]]

    learned: ClassVar[tuple[str, ...]] = ()
    """Other numbers that ``learnable_temperature`` makes parameters."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        parameters = inspect.signature(self.function).parameters
        known = {k: p.default for k, p in parameters.items() if p.kind == p.KEYWORD_ONLY}
        learning = {name: options.pop(name) for name in _LEARNING if name in options}
        for name in [*options, *learning]:
            if name not in known and not (name in _LEARNING and "temperature" in known):
                raise TypeError(
                    f"{type(self).__name__} got an unknown option {name!r}, expected some of "
                    + ", ".join(known)
                )
        self.temperature: Temperature | None = None
        if "temperature" in known:
            self.temperature = Temperature(
                options.pop("temperature", known["temperature"]),
                learning.get("learnable_temperature", False),
                learning.get("min_temperature", 0.01),
                learning.get("max_temperature", 10.0),
            )
        if self.temperature is not None and self.temperature.log_scale is not None:
            for name in self.learned:
                value = float(options.pop(name, known[name]))
                setattr(self, name, nn.Parameter(torch.tensor(value)))
        self.options = options

    def forward(self, *tensors: Tensor, **options: Any) -> Tensor:
        call = {**self.options, **options}
        if self.temperature is not None:
            call.setdefault("temperature", self.temperature())
        for name in self.learned:
            if hasattr(self, name):
                call.setdefault(name, getattr(self, name))
        return type(self).function(*tensors, **call)

    def extra_repr(self) -> str:
        shown = [f"{name}={value!r}" for name, value in self.options.items()]
        learned = {name: getattr(self, name) for name in self.learned if hasattr(self, name)}
        shown += [f"{name}={value.item():.4g}, learnable" for name, value in learned.items()]
        return ", ".join(shown)


def _twin(name: str, function: Callable[..., Tensor]) -> type[Objective]:
    doc = f":func:`contrastive_ops.{function.__name__}` as a module."
    return type(
        name,
        (Objective,),
        {"function": staticmethod(function), "__doc__": doc, "__module__": __name__},
    )


NTXentLoss = _twin("NTXentLoss", functional.nt_xent)
SupConLoss = _twin("SupConLoss", functional.sup_con)
SoftNearestNeighborLoss = _twin("SoftNearestNeighborLoss", functional.soft_nearest_neighbor)
DecoupledNCELoss = _twin("DecoupledNCELoss", functional.decoupled_nce)
DebiasedNCELoss = _twin("DebiasedNCELoss", functional.debiased_nce)
HardnessWeightedNCELoss = _twin("HardnessWeightedNCELoss", functional.hardness_weighted_nce)
JointNCELoss = _twin("JointNCELoss", functional.joint_nce)
OwnPositiveNCELoss = _twin("OwnPositiveNCELoss", functional.own_positive_nce)
SoftTargetNCELoss = _twin("SoftTargetNCELoss", functional.soft_target_nce)
AIFeedbackNCELoss = _twin("AIFeedbackNCELoss", functional.ai_feedback_nce)
QuickThoughtLoss = _twin("QuickThoughtLoss", functional.quick_thought)
UniCLLoss = _twin("UniCLLoss", functional.uni_cl)
ThresholdGuidedNCELoss = _twin("ThresholdGuidedNCELoss", functional.threshold_guided_nce)
GaussianDecayNCELoss = _twin("GaussianDecayNCELoss", functional.gaussian_decay_nce)
SampledSoftmaxLoss = _twin("SampledSoftmaxLoss", functional.sampled_softmax)
SquaredL2NCELoss = _twin("SquaredL2NCELoss", functional.squared_l2_nce)
BrownianBridgeNCELoss = _twin("BrownianBridgeNCELoss", functional.brownian_bridge_nce)
ScoreNCELoss = _twin("ScoreNCELoss", functional.score_nce)
VocabularySoftmaxLoss = _twin("VocabularySoftmaxLoss", functional.vocabulary_softmax)

NCELoss = _twin("NCELoss", functional.nce)
PairBCELoss = _twin("PairBCELoss", functional.pair_bce)

TripletMarginLoss = _twin("TripletMarginLoss", functional.triplet_margin)
TripletLoss = _twin("TripletLoss", functional.triplet)
LiftedStructureLoss = _twin("LiftedStructureLoss", functional.lifted_structure)
NPairLoss = _twin("NPairLoss", functional.n_pair)
EnergyHingeLoss = _twin("EnergyHingeLoss", functional.energy_hinge)
BandHingeLoss = _twin("BandHingeLoss", functional.band_hinge)
ClusterBandHingeLoss = _twin("ClusterBandHingeLoss", functional.cluster_band_hinge)
TokenHingeLoss = _twin("TokenHingeLoss", functional.token_hinge)
PairContrastiveLoss = _twin("PairContrastiveLoss", functional.pair_contrastive)

AngleLoss = _twin("AngleLoss", functional.angle)
CoSENTLoss = _twin("CoSENTLoss", functional.cosent)
ListNetLoss = _twin("ListNetLoss", functional.list_net)
ListMLELoss = _twin("ListMLELoss", functional.list_mle)
SimilarityDivergenceLoss = _twin("SimilarityDivergenceLoss", functional.similarity_divergence)
SimilarityMSELoss = _twin("SimilarityMSELoss", functional.similarity_mse)
GroupDistillationLoss = _twin("GroupDistillationLoss", functional.group_distillation)
MarginMSELoss = _twin("MarginMSELoss", functional.margin_mse)
FeatureMSELoss = _twin("FeatureMSELoss", functional.feature_mse)
FeatureCosineLoss = _twin("FeatureCosineLoss", functional.feature_cosine)
EmbeddingKLLoss = _twin("EmbeddingKLLoss", functional.embedding_kl)
CosineRegressionLoss = _twin("CosineRegressionLoss", functional.cosine_regression)

AlignmentLoss = _twin("AlignmentLoss", functional.alignment)
UniformityLoss = _twin("UniformityLoss", functional.uniformity)
KoLeoLoss = _twin("KoLeoLoss", functional.ko_leo)
NegativeLSELoss = _twin("NegativeLSELoss", functional.negative_lse)
SlicedWassersteinLoss = _twin("SlicedWassersteinLoss", functional.sliced_wasserstein)
BarlowTwinsLoss = _twin("BarlowTwinsLoss", functional.barlow_twins)
VICRegLoss = _twin("VICRegLoss", functional.vicreg)
BYOLLoss = _twin("BYOLLoss", functional.byol)
CorInfoMaxLoss = _twin("CorInfoMaxLoss", functional.cor_info_max)
SIGRegLoss = _twin("SIGRegLoss", functional.sig_reg)


class SigmoidLoss(Objective):
    """:func:`contrastive_ops.sigmoid_loss` as a module; a learnable temperature brings the bias."""

    function = staticmethod(functional.sigmoid_loss)
    learned = ("bias",)


__all__: list[str] = ["EmbeddingQueue", "GroupZCA", "PairSoftmaxLoss", "QueueBank", "Whitening"]
__all__ += [
    n for n, v in list(globals().items()) if isinstance(v, type) and issubclass(v, Objective)
]
__all__.remove("Objective")
