"""The whole table, and docs/objectives.md generated from it.

python tests/objectives/table.py    writes the page
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from row import BASIS, Row
from rows_geometry import ROWS as GEOMETRY
from rows_hinge import ROWS as HINGE
from rows_ranking import ROWS as RANKING
from rows_sigmoid import ROWS as SIGMOID
from rows_softmax import ROWS as SOFTMAX

FAMILIES = {
    "Softmax cross-entropy": SOFTMAX,
    "Pairwise logistic": SIGMOID,
    "Triplets and hinges": HINGE,
    "Ranking and distillation": RANKING,
    "Geometry, decorrelation, heads and queues": GEOMETRY,
}
ROWS: list[Row] = [row for rows in FAMILIES.values() for row in rows]
PAGE = Path(__file__).parents[2] / "docs" / "objectives.md"

HEAD = """\
# Objectives

Each line is a call of this library and the method whose loss it is. Every one is tested against
that loss written out densely in float64: the value, all gradients, and second derivatives where a
call has them. `query` and `key` stand for a method's two sides, `z1`, `z2`, `z3` for two views and
a hard negative. Written by `python tests/objectives/table.py`; not to be edited.

Where published code and papers disagree, this is what the calls do:

* DCLR and MultiCSR: the paper's loss is `objective="softmax_ce"`; the authors' code, where excluded
  logits become 0 and all softmax entries go through a binary cross-entropy, is
  `objective="softmax_bce", excluded_logit=0`.
* Quick-Thought: a sentence's own logit is 0, as in the authors' code; `excluded_logit=None` leaves
  it out.
* ConSERT adds its two sides up: twice `nt_xent`. LEALLA, CLIP and UniCL are means of directions.
* CLHAIF's targets do not sum to 1 under `smoothing="positive"`; soft targets never need to.
* pytorch-metric-learning's NT-Xent and SG-OPT leave other positives out of each denominator:
  `positives_in_denominator=False`, `own_positive_nce`.
* InfoXLM: raw dot products (`normalize=False`); its code and paper differ in temperature and queue,
  so give both.
* Gathering across devices: `gradient="mean"` or `"sum"` of `distributed.info_nce` says whether the
  averaged or the summed parameter gradient is the global one; no factor hides in a loss. SimCSE's
  code, under DistributedDataParallel with W ranks, has 1 / W of it.
* RankCSE: the Jensen-Shannon term in full; a public port's clamp leaves only an entropy of it.
* FaceNet: `mining="semi-hard"` is deterministic; the popular port's looser rule, any negative with
  a positive loss, is `mining="violator"`.
* GCSE's `decay_width` is in logits; AnglE's "tau" multiplies, as `scale` does.
* miCSE's attention mutual information, DiffCSE's and other models' token losses, and GRACE's reward
  (of which `Statistics` has the parts) are not functions of embeddings alone: no call here.
* DiscoEval's learning criteria: predicting neighbours is `quick_thought`, pairs are
  `PairSoftmaxLoss`; its positions, levels and titles are classifications of one embedding: no call.
* WhitenedCSE's published code does not parse; its loss here is the formula's.
* GTE: whether the pair counts once or twice in the joint denominator is not public; twice as the
  formula is written, `pair_counts=1` for once.
"""


def page() -> str:
    lines = [HEAD]
    for family, rows in FAMILIES.items():
        lines += ["", f"## {family}", "", "| method | year | call | remarks |", "|---|---|---|---|"]
        for row in rows:
            remarks = " ".join(part for part in (row.note, _basis(row)) if part)
            call = row.call.replace("|", "\\|")
            lines.append(f"| {row.method} | {row.year} | `{call}` | {remarks} |")
    return "\n".join(lines) + "\n"


def _basis(row: Row) -> str:
    text = BASIS[row.basis]
    return f"({text[0].upper()}{text[1:]}.)" if text else ""


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())
    print(f"{PAGE}: {len(ROWS)} calls")
