"""Tables of texts, labels and scores, for whoever reads any: one reader, the same errors."""

from .columns import ROLES, read_columns, read_development_set, split_source
from .files import FORMATS, read_table
from .table import Table

__all__ = [
    "FORMATS",
    "ROLES",
    "Table",
    "read_columns",
    "read_development_set",
    "read_table",
    "split_source",
]
