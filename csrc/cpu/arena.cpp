#include "arena.h"

#include <atomic>
#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace contrastive_ops {
namespace {

constexpr size_t kept_bytes = size_t(256) << 20;   // the default workspace and what goes with it
constexpr size_t owned_bytes = size_t(64) << 20;  // of it not offered to the system meanwhile
constexpr size_t huge_page = size_t(2) << 20;

// The size is written ahead of what callers see.
constexpr size_t header = 64;
size_t& size_of(void* block) { return *static_cast<size_t*>(block); }

void* allocate(size_t bytes) {
  const size_t alignment = bytes >= huge_page ? huge_page : 64;
  bytes = (bytes + alignment - 1) / alignment * alignment;
  void* p = std::aligned_alloc(alignment, bytes);
  if (!p) throw std::bad_alloc();
#if defined(__linux__)
  // Fewer page faults and TLB misses; a refusal costs speed only.
  if (alignment == huge_page) madvise(p, bytes, MADV_HUGEPAGE);
#endif
  size_of(p) = bytes;
  return p;
}

// One block for the process: whoever runs takes it, so a training step finds its pages in place
// (fresh ones cost more than the arithmetic on them), and at most kept_bytes stay behind, all but
// owned_bytes of them free for the system to take.
std::atomic<void*> spare{nullptr};

}  // namespace

Arena::Arena(size_t bytes) : block_(spare.exchange(nullptr, std::memory_order_acquire)) {
  bytes += header;
  if (block_ && size_of(block_) >= bytes) return;
  std::free(block_);
  block_ = allocate(bytes);
}

Arena::~Arena() {
  if (size_of(block_) <= kept_bytes) {
#if defined(__linux__) && defined(MADV_FREE)
    // The rest stays in place only for as long as nobody else wants the memory.
    if (size_of(block_) > owned_bytes) {
      madvise(static_cast<char*>(block_) + owned_bytes, size_of(block_) - owned_bytes, MADV_FREE);
    }
#endif
    block_ = spare.exchange(block_, std::memory_order_release);
  }
  std::free(block_);
}

void* Arena::data() const { return static_cast<char*>(block_) + header; }

}  // namespace contrastive_ops
