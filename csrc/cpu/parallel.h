// Independent tasks on the threads of the host's pool.
#pragma once
#include <cstdint>
#include <type_traits>

namespace contrastive_ops {

// How many workers a parallel_tasks may have here: 1 inside another parallel region.
int available_workers();

// Calls body(context, task, worker) once for every task, worker < workers, tasks taken in order by
// whichever worker is free. With one worker everything runs in the caller. Subnormal results are
// flushed to zero meanwhile: they are below any rounding error here, and slow on many CPUs.
// `body` must not throw.
void parallel_tasks(int64_t tasks, int workers, void (*body)(void*, int64_t, int), void* context);

template <class F>
inline void parallel_for(int64_t tasks, int workers, F&& f) {
  using Body = std::remove_reference_t<F>;
  parallel_tasks(
      tasks, workers,
      [](void* context, int64_t task, int worker) { (*static_cast<Body*>(context))(task, worker); },
      const_cast<void*>(static_cast<const void*>(&f)));
}

}  // namespace contrastive_ops
