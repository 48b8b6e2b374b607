"""Measurements against the losses that people use today; ``contrastive-ops bench`` runs them.

Rules that hold everywhere here: the variants of a case take turns (A B C A B C ...), so that a
machine that slows down slows all of them; times are medians, ratios are medians of the rounds'
ratios; an error against float64 stands beside every time; peers are imported, never imitated.
"""
