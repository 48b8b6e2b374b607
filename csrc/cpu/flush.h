// While it lives, this thread's subnormal results become zero (x86; elsewhere nothing changes).
#pragma once

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace contrastive_ops {

class FlushSubnormals {
 public:
#if defined(__SSE2__)
  FlushSubnormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | _MM_FLUSH_ZERO_ON); }
  ~FlushSubnormals() { _mm_setcsr(saved_); }
#else
  FlushSubnormals() {}
  ~FlushSubnormals() {}
#endif
  FlushSubnormals(const FlushSubnormals&) = delete;
  FlushSubnormals& operator=(const FlushSubnormals&) = delete;

#if defined(__SSE2__)
 private:
  unsigned saved_;
#endif
};

// While it lives, subnormal results are kept, inside FlushSubnormals too.
class KeepSubnormals {
 public:
#if defined(__SSE2__)
  KeepSubnormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ & ~unsigned(_MM_FLUSH_ZERO_ON)); }
  ~KeepSubnormals() { _mm_setcsr(saved_); }
#else
  KeepSubnormals() {}
  ~KeepSubnormals() {}
#endif
  KeepSubnormals(const KeepSubnormals&) = delete;
  KeepSubnormals& operator=(const KeepSubnormals&) = delete;

#if defined(__SSE2__)
 private:
  unsigned saved_;
#endif
};

}  // namespace contrastive_ops
