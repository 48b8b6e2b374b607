// A register-only loop that measures what the arithmetic units can do, for the benchmarks'
// "percent of peak". Independent accumulators hide the latency of an instruction; their number fits
// the registers that the instruction set has.

#include "peak.h"

#include <atomic>
#include <chrono>
#include <cstdint>
#include <stdexcept>
#include <thread>
#include <vector>

#if (defined(__x86_64__) || defined(__i386__)) && defined(__GNUC__)
#define CONTRASTIVE_OPS_X86 1
#include <immintrin.h>
#endif

namespace contrastive_ops {
namespace {

// Runs a fixed number of operations and returns how many floating point operations they were.
using Burst = double (*)(float* state);

constexpr int kSteps = 4096;

// x <- 0.5 x + 0.5: stays a normal number however long it runs.
constexpr float kHalf = 0.5f;

#ifdef CONTRASTIVE_OPS_X86

__attribute__((target("avx512f"))) double burst_avx512(float* state) {
  constexpr int kAccumulators = 24;
  const __m512 half = _mm512_set1_ps(kHalf);
  __m512 acc[kAccumulators];
  for (int i = 0; i < kAccumulators; ++i) acc[i] = _mm512_set1_ps(state[i % 8]);
  for (int step = 0; step < kSteps; ++step) {
#pragma GCC unroll 24
    for (int i = 0; i < kAccumulators; ++i) acc[i] = _mm512_fmadd_ps(acc[i], half, half);
  }
  __m512 sum = acc[0];
  for (int i = 1; i < kAccumulators; ++i) sum = _mm512_add_ps(sum, acc[i]);
  state[0] = 1.0f + 1e-6f * _mm512_cvtss_f32(sum);
  return 2.0 * 16 * kAccumulators * kSteps;
}

__attribute__((target("avx512f,avx512bf16"))) double burst_avx512_bf16(float* state) {
  constexpr int kAccumulators = 24;
  // 2^-13 * 2^-13, two per lane: far from overflow after any time that a run can last.
  const __m512bh small = (__m512bh)_mm512_set1_epi16(0x3900);
  __m512 acc[kAccumulators];
  for (int i = 0; i < kAccumulators; ++i) acc[i] = _mm512_set1_ps(state[i % 8]);
  for (int step = 0; step < kSteps; ++step) {
#pragma GCC unroll 24
    for (int i = 0; i < kAccumulators; ++i) acc[i] = _mm512_dpbf16_ps(acc[i], small, small);
  }
  __m512 sum = acc[0];
  for (int i = 1; i < kAccumulators; ++i) sum = _mm512_add_ps(sum, acc[i]);
  state[0] = 1.0f + 1e-6f * _mm512_cvtss_f32(sum);
  return 2.0 * 32 * kAccumulators * kSteps;
}

__attribute__((target("avx2,fma"))) double burst_avx2(float* state) {
  constexpr int kAccumulators = 12;
  const __m256 half = _mm256_set1_ps(kHalf);
  __m256 acc[kAccumulators];
  for (int i = 0; i < kAccumulators; ++i) acc[i] = _mm256_set1_ps(state[i % 8]);
  for (int step = 0; step < kSteps; ++step) {
#pragma GCC unroll 12
    for (int i = 0; i < kAccumulators; ++i) acc[i] = _mm256_fmadd_ps(acc[i], half, half);
  }
  __m256 sum = acc[0];
  for (int i = 1; i < kAccumulators; ++i) sum = _mm256_add_ps(sum, acc[i]);
  state[0] = 1.0f + 1e-6f * _mm256_cvtss_f32(sum);
  return 2.0 * 8 * kAccumulators * kSteps;
}

#endif  // CONTRASTIVE_OPS_X86

// 128-bit vectors, which every target of the compilers that build this has in registers.
typedef float Vector4 __attribute__((vector_size(16)));

double burst_portable(float* state) {
  constexpr int kAccumulators = 12;
  const Vector4 half = {kHalf, kHalf, kHalf, kHalf};
  Vector4 acc[kAccumulators];
  for (int i = 0; i < kAccumulators; ++i) {
    const float start = state[i % 8];
    acc[i] = Vector4{start, start, start, start};
  }
  for (int step = 0; step < kSteps; ++step) {
#pragma GCC unroll 12
    for (int i = 0; i < kAccumulators; ++i) acc[i] = acc[i] * half + half;
  }
  Vector4 sum = acc[0];
  for (int i = 1; i < kAccumulators; ++i) sum = sum + acc[i];
  state[0] = 1.0f + 1e-6f * sum[0];
  return 2.0 * 4 * kAccumulators * kSteps;
}

Burst choose_burst(const std::string& kind) {
  if (kind != "float32" && kind != "bfloat16") {
    throw std::invalid_argument("kind: expected \"float32\" or \"bfloat16\", got \"" + kind + "\"");
  }
#ifdef CONTRASTIVE_OPS_X86
  const bool avx512 = __builtin_cpu_supports("avx512f");
  if (kind == "bfloat16") {
    return avx512 && __builtin_cpu_supports("avx512bf16") ? burst_avx512_bf16 : nullptr;
  }
  if (avx512) return burst_avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return burst_avx2;
#endif
  return kind == "float32" ? burst_portable : nullptr;
}

}  // namespace

double measure_peak(const std::string& kind, int threads, double seconds) {
  const Burst burst = choose_burst(kind);
  if (threads < 1) throw std::invalid_argument("threads: expected at least 1");
  if (!(seconds > 0)) throw std::invalid_argument("seconds: expected a positive number");
  if (burst == nullptr) return 0.0;

  using Clock = std::chrono::steady_clock;
  std::vector<double> rates(threads, 0.0);
  std::atomic<int> waiting{threads};
  auto work = [&](int index) {
    volatile float source = 1.0f;  // keeps the compiler from working the result out
    float state[8];
    for (float& value : state) value = source;
    burst(state);
    waiting.fetch_sub(1);
    while (waiting.load() > 0) std::this_thread::yield();
    const auto start = Clock::now();
    double operations = 0, elapsed = 0;
    while (elapsed < seconds) {
      for (int i = 0; i < 16; ++i) operations += burst(state);
      elapsed = std::chrono::duration<double>(Clock::now() - start).count();
    }
    source = state[0];
    rates[index] = operations / elapsed * 1e-9;
  };
  std::vector<std::thread> pool;
  for (int index = 1; index < threads; ++index) pool.emplace_back(work, index);
  work(0);
  for (std::thread& thread : pool) thread.join();
  double total = 0;
  for (double rate : rates) total += rate;
  return total;
}

}  // namespace contrastive_ops
