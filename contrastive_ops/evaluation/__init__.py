"""Evaluation of embeddings: similarity, retrieval, triplets, neighbours, clusters, geometry."""

from .clustering import ClusteringEvaluator, clustering_scores
from .evaluator import Evaluator, embed, evaluate, load_model
from .geometry import GeometryEvaluator, geometry_scores
from .knn import KNNEvaluator, knn_scores
from .retrieval import RetrievalEvaluator, ranking_scores, retrieval_scores
from .sts import STSEvaluator, sts_scores
from .triplets import TripletEvaluator, triplet_scores

__all__ = [
    "ClusteringEvaluator",
    "Evaluator",
    "GeometryEvaluator",
    "KNNEvaluator",
    "RetrievalEvaluator",
    "STSEvaluator",
    "TripletEvaluator",
    "clustering_scores",
    "embed",
    "evaluate",
    "geometry_scores",
    "knn_scores",
    "load_model",
    "ranking_scores",
    "retrieval_scores",
    "sts_scores",
    "triplet_scores",
]
