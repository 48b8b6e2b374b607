// The kernels behind plain C functions, for ctypes: no header of torch's, one library for any torch.
// Each starts one kernel on a stream and returns 0, or an error's number for `describe_error`.
// Compiled as C++ it is the same library for a CPU (simt_host.h).
#include <cstdint>
#include <cstring>

#include "fold.h"
#include "merge.h"
#include "prepare.h"
#include "scan_hopper.h"
#include "score.h"

#if defined(_WIN32)
#define CO_EXPORT extern "C" __declspec(dllexport)
#else
#define CO_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace contrastive_ops::cuda {
namespace {

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class E>
int prepare(const Selection& s, bool candidates, void* stream) {
  using Kernel = Prepare<E>;
  const int64_t rows = candidates ? s.chunk : s.padded_rows;
  return launch<Kernel>({s, candidates}, rows / group_size, Kernel::shared_bytes, stream);
}

// What a multiprocessor has: of a block, and of all its blocks.
static_assert(Scan<Half>::blocks_per_multiprocessor * (Scan<Half>::shared_bytes + 1024) <= 164 << 10);
static_assert(ScanHopper<Half>::shared_bytes <= 227 << 10);
static_assert(Score<Float64, true>::shared_bytes <= 48 << 10);
static_assert(Merge<double>::largest_k * (sizeof(double) + sizeof(int64_t)) <= 48 << 10);

int forced_scan = 0;

template <class T>
int scan(const Selection& s, void* stream) {
  const Machine here = machine();
  if (here.error) return here.error;
  using Kernel = ScanHopper<T>;
  int source = 0;
  if ((forced_scan ? forced_scan : here.major) == 9) {
    const int error = source_architecture<Kernel>(source);
    if (error) return error;
  }
  if (source != 90) {
    return launch<Scan<T>>(s, Scan<T>::tiles(s), Scan<T>::shared_bytes, stream);
  }
  const int64_t tiles = Kernel::tiles(s);
  const int64_t at_once = here.multiprocessors;
  return launch<Kernel>(s, tiles < at_once ? tiles : at_once, Kernel::shared_bytes, stream);
}

template <class E, bool l2>
int score(const Selection& s, void* stream) {
  using Kernel = Score<E, l2>;
  return launch<Kernel>(s, divide_up(s.pairs, Kernel::pairs_at_once), Kernel::shared_bytes, stream);
}

}  // namespace
}  // namespace contrastive_ops::cuda

using namespace contrastive_ops::cuda;

CO_EXPORT int64_t co_struct_bytes() { return int64_t(sizeof(Selection)); }
CO_EXPORT int co_on_gpu() {
#if defined(__CUDACC__)
  return 1;
#else
  return 0;
#endif
}
// For tests and measurements: 8 scans by mma.sync, 9 by wgmma (Hopper only), 0 by what is there.
CO_EXPORT void co_force_scan(int major) { forced_scan = major; }
// Of a block, by the kernel's name, for reports; merge has 12 or 16 bytes for each of k.
CO_EXPORT int co_shared_bytes(const char* kernel) {
  const auto is = [&](const char* name) { return std::strncmp(kernel, name, std::strlen(name)) == 0; };
  if (is("ScanHopper")) return ScanHopper<Half>::shared_bytes;
  if (is("Scan")) return Scan<Half>::shared_bytes;
  if (is("Prepare")) return Prepare<Float32>::shared_bytes;
  if (is("Fold")) return Fold::shared_bytes;
  if (is("Score")) return Score<Float32, false>::shared_bytes;
  return 0;
}
CO_EXPORT const char* co_describe_error(int status) { return error_text(status); }

CO_EXPORT int co_prepare_queries(const Selection* s, void* stream) {
  return with_dtype(s->dtype, [&](auto e) { return prepare<decltype(e)>(*s, false, stream); });
}
CO_EXPORT int co_prepare_chunk(const Selection* s, void* stream) {
  return with_dtype(s->dtype, [&](auto e) { return prepare<decltype(e)>(*s, true, stream); });
}
CO_EXPORT int co_scan(const Selection* s, void* stream) {
  return DType(s->dtype) == DType::bfloat16 ? scan<Bf16>(*s, stream) : scan<Half>(*s, stream);
}
CO_EXPORT int co_fold(const Selection* s, void* stream) {
  return launch<Fold>(*s, divide_up(s->rows, 32), Fold::shared_bytes, stream);
}
CO_EXPORT int co_finish(const Selection* s, void* stream) {
  return launch<Finish>(*s, divide_up(s->rows, Finish::threads / 32), Finish::shared_bytes, stream);
}
CO_EXPORT int co_score(const Selection* s, void* stream) {
  return with_dtype(s->dtype, [&](auto e) {
    using E = decltype(e);
    return s->l2 ? score<E, true>(*s, stream) : score<E, false>(*s, stream);
  });
}
CO_EXPORT int co_merge(const Selection* s, void* stream) {
  if (DType(s->dtype) == DType::float64) {
    return launch<Merge<double>>(*s, s->rows, Merge<double>::shared_bytes(s->k), stream);
  }
  return launch<Merge<float>>(*s, s->rows, Merge<float>::shared_bytes(s->k), stream);
}
