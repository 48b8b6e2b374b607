"""Triton kernels for CUDA and ROCm GPUs; installed as ``contrastive_ops.kernels``.

``rows`` prepares operands and finishes gradients, row by row; ``tile`` is a tile's product and
which of its pairs count; ``statistics`` sums exponentials over tiles, ``combine`` closes the sums
and settles losses; ``coefficients`` writes the gradient by logit; ``select`` finds
the best candidates of a row; ``config`` says how large tiles are.
`contrastive_ops.engine.gpu` launches them. Importing this package imports none of them.
"""

if __name__ == "kernels":
    # Imported by its bare name, which happens only when the repository root is on the path. That
    # name belongs to another distribution, and transformers looks for it: hand over to that one,
    # or, where it is not installed, be a version too old for anybody to use.
    import importlib.machinery
    import importlib.util
    import sys
    from pathlib import Path

    _root = Path(__file__).resolve().parent.parent
    _elsewhere = [entry for entry in sys.path if Path(entry or ".").resolve() != _root]
    _spec = importlib.machinery.PathFinder.find_spec(__name__, _elsewhere)
    if _spec is not None and _spec.loader is not None and _spec.origin is not None:
        _module = importlib.util.module_from_spec(_spec)
        sys.modules[__name__] = _module
        _spec.loader.exec_module(_module)
    else:
        __version__ = "0"
