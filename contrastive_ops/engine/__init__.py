"""Similarity problems and the reductions over their logits, which never exist as a matrix.

A problem comes in from ``functional`` as one frozen :class:`~.problem.SimilarityProblem` and its
:class:`~.problem.Operands`, is handed to one backend (:mod:`.backends`), and comes back as a loss.
No backend knows a loss's name; no loss knows a backend.
"""
