// What the kernels ask of the machine that runs them: a GPU, or a CPU that stands in for one.
//
// Kernels are structs with `threads`, `blocks_per_multiprocessor` and a static `run(params, shared)`
// written for one thread, in terms of the functions below. nvcc compiles them for GPUs
// (simt_device.h). Any C++ compiler compiles the same text for a CPU (simt_host.h), where the
// threads of a block take turns: that is how the tests run them where there is no GPU.
#pragma once
#include <cstdint>

#if defined(__CUDACC__)
#include "simt_device.h"
#else
#include "simt_host.h"
#endif
