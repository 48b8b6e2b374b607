"""One file a family of losses; the public names are those of :mod:`contrastive_ops.functional`."""
