// One aligned piece of memory per call, carved by a cursor that first measures, then hands out.
#pragma once
#include <cstddef>
#include <cstdint>

namespace contrastive_ops {

class Arena {
 public:
  explicit Arena(size_t bytes);  // the block of an earlier call if that is large enough
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  void* data() const;

 private:
  void* block_;
};

class Cursor {
 public:
  explicit Cursor(void* base) : base_(static_cast<char*>(base)) {}

  template <class T>
  T* take(int64_t count) {
    // A page apart would put every buffer on the same cache sets; a line apart does not.
    constexpr size_t line = 64;
    T* p = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
    used_ += (size_t(count > 0 ? count : 0) * sizeof(T) + line - 1) / line * line;
    return p;
  }
  size_t used() const { return used_; }
  bool is_real() const { return base_; }

 private:
  char* base_;
  size_t used_ = 0;
};

}  // namespace contrastive_ops
