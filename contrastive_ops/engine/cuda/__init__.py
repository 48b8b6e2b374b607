"""Backend ``cuda``: CUDA C++ kernels (csrc/cuda) where they beat Triton's, which is selection."""
