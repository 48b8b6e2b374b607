"""What is watching a call: compilers, dispatch modes, and PyTorch's function transforms."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.autograd import forward_ad


def is_traced() -> bool:
    """Whether operators are recorded or interpreted, so that kernels may not be called past them.

    True under ``torch.compile`` and under dispatch modes (``make_fx``, fake tensors, counters).
    """
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0


def needs_reference(tensors: Iterable[Tensor | None]) -> bool:
    """Whether only plain autograd serves: forward mode, or a transform other than ``grad``.

    Also any transform that is itself recorded, for which PyTorch has no custom functions.
    """
    if torch._C._are_functorch_transforms_active():
        if torch._C._len_torch_dispatch_stack() > 0:
            return True
        interpreters = torch._C._functorch.get_interpreter_stack() or ()
        if any(i.key() != torch._C._functorch.TransformType.Grad for i in interpreters):
            return True
    if forward_ad._current_level < 0:
        return False
    return any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors)
