#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "check.h"
#include "isa.h"
#include "parallel.h"
#include "problem.h"

namespace contrastive_ops {
namespace {

struct Isa {
  const char* name;
  void (*run32)(const Problem<float>&, Mode);
  void (*run64)(const Problem<double>&, Mode);
  void (*select)(SelectProblem&);
  void (*tokens32)(const TokenProblem<float>&);
  void (*tokens64)(const TokenProblem<double>&);
  void (*neighbours32)(const NeighbourProblem<float>&);
  void (*neighbours64)(const NeighbourProblem<double>&);
  void (*pairs32)(const PairProblem<float>&);
  void (*pairs64)(const PairProblem<double>&);
};

// The compiler's CPU checks include the operating system's consent to wide registers.
struct Available {
  Isa isas[4];
  const char* names[4];
  int count = 0;

  Available() {
    add({"portable", portable::run, portable::run, portable::select, portable::token_similarity,
         portable::token_similarity, portable::neighbours, portable::neighbours, portable::pairs,
         portable::pairs});
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !has_f16c()) return;
    add({"avx2", avx2::run, avx2::run, avx2::select, avx2::token_similarity,
         avx2::token_similarity, avx2::neighbours, avx2::neighbours, avx2::pairs, avx2::pairs});
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl")) {
      return;
    }
    add({"avx512", avx512::run, avx512::run, avx512::select, avx512::token_similarity,
         avx512::token_similarity, avx512::neighbours, avx512::neighbours, avx512::pairs,
         avx512::pairs});
    if (!__builtin_cpu_supports("avx512bf16")) return;
    const bool vnni = __builtin_cpu_supports("avx512vnni");
    add({"avx512bf16", avx512bf16::run, avx512bf16::run,
         vnni ? avx512bf16::select : avx512::select, avx512bf16::token_similarity,
         avx512bf16::token_similarity, avx512::neighbours, avx512::neighbours, avx512::pairs,
         avx512::pairs});
#endif
  }

  void add(const Isa& isa) {
    isas[count] = isa;
    names[count] = isa.name;
    ++count;
  }
#if defined(__x86_64__)
  static bool has_f16c() {  // older compilers do not know it by name
    unsigned a = 1, b, c = 0, d;
    __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    return c >> 29 & 1;
  }
#endif
  const Isa* find(const char* name) const {
    for (int i = 0; i < count; ++i) {
      if (std::strcmp(isas[i].name, name) == 0) return &isas[i];
    }
    return nullptr;
  }
};

const Available& available() {
  static const Available instance;
  return instance;
}

const Isa& require_isa(const char* name) {
  const Isa* isa = available().find(name);
  if (isa) return *isa;
  std::string names;
  for (int i = 0; i < available().count; ++i) {
    names += (i ? ", " : "") + std::string(available().names[i]);
  }
  throw std::invalid_argument("CONTRASTIVE_OPS_CPU_ISA: this CPU has " + names + ", not '" +
                              std::string(name) + "'");
}

std::atomic<const Isa*> selected{nullptr};

const Isa& current() {
  if (const Isa* isa = selected.load(std::memory_order_acquire)) return *isa;
  const char* forced = std::getenv("CONTRASTIVE_OPS_CPU_ISA");
  if (forced && *forced) return require_isa(forced);
  return available().isas[available().count - 1];
}

}  // namespace

template <class Acc>
int workers_for(const Problem<Acc>& p, Mode mode) {
  // Below this many multiply-adds waking a thread costs more than it brings.
  constexpr double worthwhile = 1e6;
  double candidates = double(p.own.count);
  for (const Block<Acc>* block : {&p.keys, &p.negatives}) {
    if (block->scanned) candidates += double(block->count);
  }
  const double products = mode == Mode::forward ? 1 : 3;
  const double work = products * double(p.rows) * (candidates + 1) * double(p.dim);
  return work < worthwhile ? 1 : available_workers();
}
template int workers_for(const Problem<float>&, Mode);
template int workers_for(const Problem<double>&, Mode);

void run(const Problem<float>& problem, Mode mode) {
  check(problem, mode);
  current().run32(problem, mode);
}
void run(const Problem<double>& problem, Mode mode) {
  check(problem, mode);
  current().run64(problem, mode);
}

void select(SelectProblem& problem) {
  check(problem);
  current().select(problem);
}

void token_similarity(const TokenProblem<float>& problem) {
  check(problem);
  current().tokens32(problem);
}
void token_similarity(const TokenProblem<double>& problem) {
  check(problem);
  current().tokens64(problem);
}

void neighbours(const NeighbourProblem<float>& problem) {
  check(problem);
  current().neighbours32(problem);
}
void neighbours(const NeighbourProblem<double>& problem) {
  check(problem);
  current().neighbours64(problem);
}
void pairs(const PairProblem<float>& problem) {
  check(problem);
  current().pairs32(problem);
}
void pairs(const PairProblem<double>& problem) {
  check(problem);
  current().pairs64(problem);
}

const char* const* available_isas(int* count) {
  *count = available().count;
  return available().names;
}
const char* current_isa() { return current().name; }
void select_isa(const char* name) {
  selected.store(name && *name ? &require_isa(name) : nullptr, std::memory_order_release);
}

}  // namespace contrastive_ops
