"""Views of a text: changes of its tokens, made on the batch, on its device, in training only.

They draw from torch's global generator, whose state a checkpoint holds: a run that is resumed
changes the same tokens. Special tokens and a template's words stay as they are.

Sources: dropout, crop, deletion: Gao et al. 2021, "SimCSE" (arXiv 2104.08821), table 1; repetition:
Wu et al. 2022, "ESimCSE" (arXiv 2109.04380), eq. 3; shuffling and cutoffs: Yan et al. 2021,
"ConSERT" (arXiv 2105.11741), section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Features = dict[str, Any]
#: (ids (B, L), content (B, L) bool, rate) -> (ids, keep-or-copies (B, L) int64)
Change = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]


def _delete(ids: Tensor, content: Tensor, rate: float) -> tuple[Tensor, Tensor]:
    """Leaves out tokens, each with probability `rate`, never all of a text."""
    drawn = torch.rand(ids.shape, device=ids.device)
    gone = content & (drawn < rate)
    # Of a text that would lose all of them the token with the largest draw stays.
    last = drawn.masked_fill(~content, -1.0).argmax(1, keepdim=True)
    everything = (gone == content).all(1, keepdim=True)
    return ids, (~gone).scatter(1, last, (~gone).gather(1, last) | everything).long()


def _delete_one(ids: Tensor, content: Tensor, rate: float) -> tuple[Tensor, Tensor]:
    """Leaves out one token of every text that has two."""
    drawn = torch.rand(ids.shape, device=ids.device).masked_fill(~content, -1.0)
    several = content.sum(1, keepdim=True) > 1
    copies = torch.ones_like(ids)
    return ids, copies.scatter(1, drawn.argmax(1, keepdim=True), (~several).long())


def _crop(ids: Tensor, content: Tensor, rate: float) -> tuple[Tensor, Tensor]:
    """Keeps a run of a share 1 - `rate` of the tokens, at a random place."""
    count = content.sum(1, keepdim=True)
    keep = ((1 - rate) * count).round().long().clamp(min=1)
    room = (count - keep + 1).clamp(min=1)
    start = (torch.rand(count.shape, device=ids.device) * room).long()
    rank = content.long().cumsum(1) - 1
    inside = (rank >= start) & (rank < start + keep)
    return ids, (inside | ~content).long()


def _repeat(ids: Tensor, content: Tensor, rate: float) -> tuple[Tensor, Tensor]:
    """Doubles up to max(2, rate * n) of a text's n tokens, a number drawn from 0 up to that."""
    count = content.sum(1, keepdim=True)
    most = (rate * count).long().clamp(min=2).minimum(count)
    number = (torch.rand(count.shape, device=ids.device) * (most + 1)).long()
    drawn = torch.rand(ids.shape, device=ids.device).masked_fill(~content, -1.0)
    order = drawn.argsort(dim=1, descending=True).argsort(dim=1)
    return ids, 1 + (content & (order < number)).long()


def _shuffle(ids: Tensor, content: Tensor, rate: float) -> tuple[Tensor, Tensor]:
    """Puts the tokens into a random order."""
    drawn = torch.rand(ids.shape, device=ids.device).masked_fill(~content, 2.0)
    from_ = drawn.argsort(dim=1)
    to = (~content).long().argsort(dim=1, stable=True)
    moved = ids.scatter(1, to, ids.gather(1, from_))
    return torch.where(content, moved, ids), torch.ones_like(ids)


CHANGES: dict[str, Change] = {
    "delete": _delete,
    "delete-one": _delete_one,
    "crop": _crop,
    "repeat": _repeat,
    "shuffle": _shuffle,
}
CUTOFFS = ("token-cutoff", "feature-cutoff")
#: Of a view that is named without one. ESimCSE: 0.32; ConSERT: 0.15 and 0.2 in its code.
RATES = {"delete": 0.1, "crop": 0.1, "repeat": 0.32, "token-cutoff": 0.15, "feature-cutoff": 0.2}
NAMES = ("dropout", *CHANGES, *CUTOFFS)


class Views:
    """Some views, one after another.

    Args:
        names: ``NAME`` or ``NAME:RATE`` each. ``dropout`` changes nothing: it says that the
            model's own dropout shall make the view, and needs some.
        edges: tokens before and after a text's own, which always stay (see :func:`edges`).
        limit: tokens that the model can take; a text that would grow beyond stays as it was.

    Raises:
        ValueError: an unknown name, or a rate outside [0, 1).
    """

    def __init__(
        self, names: Sequence[str], edges: tuple[int, int] = (0, 0), limit: float = math.inf
    ) -> None:
        self.edges, self.limit = edges, limit
        self.changes: list[tuple[Change, float]] = []
        self.cutoffs: list[tuple[str, float]] = []
        for text in names:
            name, colon, number = text.partition(":")
            if name not in NAMES:
                raise ValueError(f"views: got {name!r}, expected one of {', '.join(NAMES)}")
            try:
                rate = float(number) if colon else RATES.get(name, 0.0)
            except ValueError:
                rate = math.nan
            if not 0 <= rate < 1:
                raise ValueError(f"views: got the rate {number!r} in {text!r}, expected [0, 1)")
            if name in CHANGES:
                self.changes.append((CHANGES[name], rate))
            elif name in CUTOFFS:
                self.cutoffs.append((name, rate))

    def __call__(self, features: Features) -> Features:
        """Changed features of a batch: padded ones of a transformer, or a static model's."""
        if not self.changes:
            return features
        ids, mask, more = _padded(features)
        for change, rate in self.changes:
            content = _content(mask, self.edges)
            ids, copies = change(ids, content, rate)
            copies = copies * mask
            too_long = copies.sum(1, keepdim=True) > self.limit
            ids, mask = _repeated(ids, torch.where(too_long, mask, copies))
        return _like(features, ids, mask, more)

    @contextmanager
    def cutting(self, model: nn.Module) -> Iterator[None]:
        """Within it, parts of the model's token embeddings are zero."""
        if not self.cutoffs:
            yield
            return
        embedding = input_embedding(model)
        handle = embedding.register_forward_hook(self._cut)
        try:
            yield
        finally:
            handle.remove()

    def _cut(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        for name, rate in self.cutoffs:
            shape = list(output.shape)
            if name == "feature-cutoff":
                shape[1:-1] = [1] * (len(shape) - 2)  # the same features of all tokens
            elif len(shape) == 3:
                shape[-1] = 1
            else:
                raise ValueError("views: got token-cutoff for a static model; use delete instead")
            output = output * (torch.rand(shape, device=output.device) >= rate).to(output.dtype)
        return output


def input_embedding(model: Any) -> nn.Module:
    """The module that looks tokens up, of a SentenceTransformer."""
    model = getattr(model, "module", model)  # under DistributedDataParallel
    first = model[0]
    if hasattr(first, "auto_model"):
        found: nn.Module = first.auto_model.get_input_embeddings()
        return found
    static: nn.Module = first.embedding
    return static


def edges(model: Any) -> tuple[int, int]:
    """How many tokens a model's tokenizer puts before and after every text."""
    if not hasattr(model[0], "auto_model"):
        return 0, 0
    special = model.tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
    own = [i for i, flag in enumerate(special) if not flag]
    return (own[0], len(special) - 1 - own[-1]) if own else (0, 0)


def _content(mask: Tensor, edges: tuple[int, int]) -> Tensor:
    """(B, L) bool: the tokens between the edges; mask (B, L) is 1 for tokens, 0 for padding."""
    rank = mask.cumsum(1)
    inside = (rank > edges[0]) & (rank <= mask.sum(1, keepdim=True) - edges[1])
    return mask.bool() & inside


def _repeated(ids: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:
    """Each token as often as `copies` (B, L) says, packed to the left; ids and mask."""
    lengths = copies.sum(1)
    flat = ids.flatten().repeat_interleave(copies.flatten())
    width = int(lengths.max()) if lengths.numel() else 0
    mask = torch.arange(width, device=ids.device) < lengths.unsqueeze(1)
    packed = ids.new_zeros(mask.shape)
    packed[mask] = flat
    return packed, mask.long()


def _padded(features: Features) -> tuple[Tensor, Tensor, bool]:
    """ids and mask, (B, L), packed to the left; whether they came from a static model."""
    ids = features["input_ids"]
    if "offsets" in features:
        offsets = features["offsets"]
        lengths = offsets.diff(append=offsets.new_tensor([len(ids)]))
        width = int(lengths.max()) if lengths.numel() else 0
        mask = torch.arange(width, device=ids.device) < lengths.unsqueeze(1)
        packed = ids.new_zeros(mask.shape)
        packed[mask] = ids
        return packed, mask.long(), True
    return *_repeated(ids, features["attention_mask"]), False


def _like(features: Features, ids: Tensor, mask: Tensor, static: bool) -> Features:
    """Features of changed tokens; what else a batch of them holds fits its new width."""
    if static:
        lengths = mask.sum(1)
        return {**features, "input_ids": ids[mask.bool()], "offsets": lengths.cumsum(0) - lengths}
    changed = {**features, "input_ids": ids, "attention_mask": mask}
    if "token_type_ids" in features:
        changed["token_type_ids"] = torch.zeros_like(ids)
    return changed
