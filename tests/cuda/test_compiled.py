"""What nvcc makes of the kernels, without a GPU: `make gpu-offline` does every architecture."""

import ctypes

import pytest

from contrastive_ops.benchmarks import cuda_offline


@pytest.fixture(scope="module")
def kernels():
    """For Hopper, which has the most of its own."""
    reason = cuda_offline.why_not()
    if reason is not None:
        pytest.skip(f"CUDA kernels: not compiled: {reason}")
    return {kernel["kernel"]: kernel for kernel in cuda_offline.compiled("sm_90a")}


def test_every_kernel_without_faults(kernels):
    """No spills, no stack, wgmma not serialised, registers of warpgroups as asked."""
    dtypes = ("Float32", "Float64", "BFloat16", "Float16", "Int8", "Bits")
    expected = {"Fold", "Finish", "Merge<float>", "Merge<double>"}
    expected |= {f"{scan}<{kind}>" for scan in ("Scan", "ScanHopper") for kind in ("Half", "Bf16")}
    expected |= {f"Prepare<{name}>" for name in dtypes}
    expected |= {f"Score<{name}, {metric}>" for name in dtypes for metric in ("false", "true")}
    assert set(kernels) == expected
    for name, kernel in kernels.items():
        assert kernel["faults"] == [], name
        assert kernel["spills"] == kernel["stack"] == 0
        assert 0 < kernel["registers"] <= 255


def test_the_scans_use_the_hardware(kernels):
    for kind in ("Half", "Bf16"):
        hopper, ampere = kernels[f"ScanHopper<{kind}>"], kernels[f"Scan<{kind}>"]
        if "matrix" not in hopper:
            pytest.skip("no cuobjdump was found")
        assert hopper["matrix"] >= 4  # one slice's products
        assert hopper["bulk"] == 3  # rows and two panels of columns
        assert ampere["matrix"] == 4 * 16
        assert ampere["asynchronous"] > 0


def test_shared_memory_fits(host_library):
    library = ctypes.CDLL(host_library)
    size = {name: library.co_shared_bytes(name.encode()) for name in ("Scan", "ScanHopper")}
    assert 3 * 4 * (16 << 10) < size["ScanHopper"] <= 227 << 10
    assert 2 * (size["Scan"] + 1024) <= 164 << 10  # two blocks on a multiprocessor of sm_80
