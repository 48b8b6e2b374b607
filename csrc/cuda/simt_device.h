// The machine is a GPU: thin names for intrinsics and PTX. See simt.h.
#pragma once
#include <cuda_runtime.h>

#define CO_DEVICE __device__ __forceinline__
#define CO_BOTH __host__ __device__ __forceinline__

namespace contrastive_ops::cuda {

using Stream = cudaStream_t;

CO_DEVICE int thread() { return int(threadIdx.x); }
CO_DEVICE int64_t block() { return blockIdx.x; }
CO_DEVICE int64_t blocks() { return gridDim.x; }
CO_DEVICE int lane() { return int(threadIdx.x) & 31; }

CO_DEVICE void sync_block() { __syncthreads(); }
CO_DEVICE void sync_warp() { __syncwarp(); }
// Of the first `count` threads that say so, under a number of their own.
CO_DEVICE void sync_some(int number, int count) {
  asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(count) : "memory");
}
template <class T>
CO_DEVICE T from_lane_xor(T v, int mask) { return __shfl_xor_sync(~0u, v, mask); }
CO_DEVICE uint32_t ballot(bool v) { return __ballot_sync(~0u, v); }
CO_DEVICE uint32_t warp_sum(uint32_t v) { return __reduce_add_sync(~0u, v); }
CO_DEVICE int bits_set(uint32_t v) { return __popc(v); }
CO_DEVICE uint32_t bits_of(float v) { return __float_as_uint(v); }
CO_DEVICE uint64_t bits_of(double v) { return uint64_t(__double_as_longlong(v)); }

// ---- numbers, each operation rounded once

CO_DEVICE float larger(float a, float b) { return fmaxf(a, b); }
CO_DEVICE double larger(double a, double b) { return fmax(a, b); }
CO_DEVICE float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
CO_DEVICE double product(double a, double b) { return __dmul_rn(a, b); }
CO_DEVICE double sum(double a, double b) { return __dadd_rn(a, b); }
// a * b is exact in double: a fused step rounds as two do.
CO_DEVICE double exact_fused(double a, double b, double c) { return __fma_rn(a, b, c); }
CO_DEVICE double square_root(double a) { return __dsqrt_rn(a); }
CO_DEVICE double reciprocal(double a) { return __drcp_rn(a); }
CO_DEVICE int exponent(double a) { return ilogb(a); }
CO_DEVICE double power_of_two(int e) { return scalbn(1.0, e); }
CO_DEVICE float float_up(double a) { return __double2float_ru(a); }
CO_DEVICE float float_of(uint32_t b) { return __uint_as_float(b); }
CO_DEVICE float infinity_float() { return __int_as_float(0x7f800000); }
CO_DEVICE double no_number() { return __longlong_as_double(0x7ff8000000000000ll); }

struct Half {
  uint16_t bits;
  static constexpr int top = 14;  // rows are scaled to [2^top, 2^(top + 1))
  static CO_DEVICE Half from(float v) {
    Half h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h.bits) : "f"(v));
    return h;
  }
  CO_DEVICE float value() const {
    float v;
    asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(bits));
    return v;
  }
};
struct Bf16 {
  uint16_t bits;
  static constexpr int top = 0;
  static CO_DEVICE Bf16 from(float v) {
    Bf16 b;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(b.bits) : "f"(v));
    return b;
  }
  CO_DEVICE float value() const { return __uint_as_float(uint32_t(bits) << 16); }
};

// ---- Ampere: asynchronous copies, matrices from shared memory, mma.sync

CO_DEVICE uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }

CO_DEVICE void copy_16(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)),
               "l"(global)
               : "memory");
}
CO_DEVICE void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int pending>
CO_DEVICE void copies_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory"); }

// Four 8 x 8 matrices; lane i names row i % 8 of matrix i / 8.
CO_DEVICE void load_matrices(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// d (16 x 8) += a (16 x 16) * b (16 x 8)
CO_DEVICE void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Half) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
CO_DEVICE void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Bf16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace contrastive_ops::cuda

#include "simt_hopper.h"

namespace contrastive_ops::cuda {

// ---- launching

template <class Kernel>
__global__ void __launch_bounds__(Kernel::threads, Kernel::blocks_per_multiprocessor)
    entry(const __grid_constant__ typename Kernel::Params p) {
  extern __shared__ __align__(1024) char shared[];
  Kernel::run(p, shared);
}

// Returns 0, or the runtime's number of the error.
template <class Kernel>
int launch(const typename Kernel::Params& p, int64_t blocks, int64_t shared_bytes, void* stream) {
  if (blocks == 0) return 0;
  if (shared_bytes > 48 << 10) {
    const cudaError_t status = cudaFuncSetAttribute(
        entry<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes));
    if (status != cudaSuccess) return int(status);
  }
  entry<Kernel><<<unsigned(blocks), Kernel::threads, size_t(shared_bytes), Stream(stream)>>>(p);
  return int(cudaGetLastError());
}

// The architecture (80, 90, ...) whose PTX a kernel comes from, or an error. Where only an older
// chip's was compiled, the driver makes code for this chip of it, without this chip's instructions.
template <class Kernel>
int source_architecture(int& found) {
  cudaFuncAttributes facts;
  const cudaError_t status = cudaFuncGetAttributes(&facts, entry<Kernel>);
  if (status == cudaSuccess) found = facts.ptxVersion;
  return int(status);
}

// Of the current device: multiprocessors, and whether it takes wgmma.
struct Machine {
  int multiprocessors = 0, major = 0, error = 0;
};
inline Machine machine() {
  Machine m;
  int device = 0;
  m.error = int(cudaGetDevice(&device));
  if (!m.error)
    m.error = int(cudaDeviceGetAttribute(&m.multiprocessors, cudaDevAttrMultiProcessorCount, device));
  if (!m.error)
    m.error = int(cudaDeviceGetAttribute(&m.major, cudaDevAttrComputeCapabilityMajor, device));
  return m;
}
inline const char* error_text(int status) { return cudaGetErrorString(cudaError_t(status)); }

}  // namespace contrastive_ops::cuda
