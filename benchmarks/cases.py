"""What is measured: a case describes one contrastive problem, `make_inputs` draws its tensors."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Inputs = Literal["gaussian", "clustered"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Case:
    """One problem: N queries against N keys of dimension D.

    ``products`` counts the N x N x D products (2 N N D operations each) that a loss which never
    recomputes anything needs: the "useful" work, whatever a variant really does.
    """

    n: int
    dim: int
    dtype: str = "float32"
    symmetric: bool = False
    learnable_temperature: bool = False
    normalize: bool = True
    backward: bool = True
    inputs: Inputs = "gaussian"
    temperature: float = 0.05

    @property
    def products(self) -> int:
        """Products in the bound: 1 forward; with the backward 3 in one direction, 4 in two."""
        if not self.backward:
            return 1
        return 4 if self.symmetric else 3

    @property
    def useful_gflop(self) -> float:
        """Useful work in 1e9 operations."""
        return self.products * 2.0 * self.n * self.n * self.dim * 1e-9

    def describe(self) -> dict[str, Any]:
        """The case as JSON."""
        return asdict(self) | {"products": self.products}


def make_inputs(case: Case, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Query and key of the case's dtype, (N, D) each, rows of unit length.

    "gaussian": independent directions, as at initialisation. "clustered": as after training; keys
    gather around one centre for 16 of them, and a query lies near its key.
    """
    generator = torch.Generator().manual_seed(seed)

    def directions(rows: int) -> Tensor:
        return F.normalize(torch.randn(rows, case.dim, generator=generator), dim=1)

    if case.inputs == "gaussian":
        query, key = directions(case.n), directions(case.n)
    else:
        centres = directions(max(1, case.n // 16))
        owner = torch.randint(len(centres), (case.n,), generator=generator)
        key = F.normalize(centres[owner] + 0.8 * directions(case.n), dim=1)
        query = F.normalize(key + 0.6 * directions(case.n), dim=1)
    dtype = DTYPES[case.dtype]
    return query.to(dtype), key.to(dtype)
