#include "parallel.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>

#include "flush.h"

namespace contrastive_ops {

int available_workers() { return at::in_parallel_region() ? 1 : std::max(1, at::get_num_threads()); }

void parallel_tasks(int64_t tasks, int workers, void (*body)(void*, int64_t, int), void* context) {
  workers = int(std::min<int64_t>(workers, tasks));
  if (workers <= 1) {
    const FlushSubnormals flush;
    for (int64_t task = 0; task < tasks; ++task) body(context, task, 0);
    return;
  }
  std::atomic<int64_t> next{0};
  at::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    const FlushSubnormals flush;
    for (int64_t worker = begin; worker < end; ++worker) {
      for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
        body(context, task, int(worker));
      }
    }
  });
}

}  // namespace contrastive_ops
