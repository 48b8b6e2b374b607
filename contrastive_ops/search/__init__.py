"""Precomputed documents: their embeddings in files, and exact search among them."""

from .embeddings import encode_to, read_embeddings
from .index import Index

__all__ = ["Index", "encode_to", "read_embeddings"]
