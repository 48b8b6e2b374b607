// The machine is a CPU: the threads of a block take turns, as fibers of one thread. See simt.h.
//
// Only what a GPU does in hardware is imitated, from the PTX manual's layouts. To catch what a lucky
// order would hide: turns are taken forwards and backwards alternately, and some warps rest while
// others run ahead; of asynchronous copies half land at once and half only when they are waited for;
// shared memory starts as rubbish, and matrix products truncate.
#pragma once
#include <csetjmp>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <mutex>
#include <type_traits>
#include <ucontext.h>
#include <vector>

#define CO_DEVICE inline
#define CO_BOTH inline

namespace contrastive_ops::cuda {

namespace host {

struct Gate {
  int arrived = 0, generation = 0;
};
struct Copy {
  void* to;
  const void* from;
  int group;
};
struct Fiber {
  jmp_buf state;
  ucontext_t context;
  std::vector<char> stack;
  bool started = false, done = false;
  std::vector<Copy> copies;
  int committed = 0;
};
struct Warp {
  Gate gate;
  alignas(16) char slots[2][32][64];
};
struct Machine {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  Gate everyone, some[16];
  std::vector<char> memory;
  char* shared = nullptr;
  int64_t shared_bytes = 0;
  int threads = 0, current = 0, left = 0, next = 0;
  int64_t turn = 0, copied = 0;
  int64_t block = 0, blocks = 0;
  void (*body)() = nullptr;
  jmp_buf home;
};
inline Machine m;
inline std::mutex busy;

inline void yield() {
  if (_setjmp(m.fibers[m.current].state) == 0) _longjmp(m.home, 1);
}
inline void wait(Gate& b, int count) {
  const int generation = b.generation;
  if (++b.arrived == count) {
    b.arrived = 0;
    ++b.generation;
  } else {
    while (b.generation == generation) yield();
  }
}
// Every lane gives a value and sees all of them.
template <class T>
const char (*exchange(const T& value))[64] {
  static_assert(sizeof(T) <= 64);
  Warp& w = m.warps[m.current / 32];
  auto* slots = w.slots[w.gate.generation & 1];
  std::memcpy(slots[m.current % 32], &value, sizeof(T));
  wait(w.gate, 32);
  return slots;
}
template <class T>
T slot(const char (*slots)[64], int lane) {
  T v;
  std::memcpy(&v, slots[lane], sizeof v);
  return v;
}

inline void start() {
  for (int64_t b = 0; b < m.blocks; ++b) {
    if (m.current == 0) {
      m.block = b;
      std::memset(m.shared, 0xcd, size_t(m.shared_bytes));
    }
    wait(m.everyone, m.threads);
    m.body();
    Fiber& me = m.fibers[m.current];
    me.copies.clear();
    me.committed = 0;
    wait(m.everyone, m.threads);
  }
  m.fibers[m.current].done = true;
  _longjmp(m.home, 1);
}

// One thread until it waits. No local variable lives across the jumps.
inline void resume() {
  if (_setjmp(m.home) != 0) return;
  if (m.fibers[m.current].started) _longjmp(m.fibers[m.current].state, 1);
  m.fibers[m.current].started = true;
  setcontext(&m.fibers[m.current].context);
}

inline void run_all() {
  m.left = m.threads;
  for (m.turn = 0; m.left > 0; ++m.turn) {
    if (m.turn > 5000000) {
      std::fprintf(stderr, "simt_host: threads wait for each other for ever\n");
      std::abort();
    }
    for (m.next = 0; m.next < m.threads; ++m.next) {
      m.current = m.turn % 2 ? m.threads - 1 - m.next : m.next;
      // A third of the warps rests for a while, so that others run ahead.
      const bool rests = (m.turn / 32 + m.current / 32) % 3 == 0;
      if (m.fibers[m.current].done || rests) continue;
      resume();
      m.left -= m.fibers[m.current].done;
    }
  }
}

}  // namespace host

inline int thread() { return host::m.current; }
inline int64_t block() { return host::m.block; }
inline int64_t blocks() { return host::m.blocks; }
inline int lane() { return host::m.current % 32; }

inline void sync_block() { host::wait(host::m.everyone, host::m.threads); }
inline void sync_warp() { host::wait(host::m.warps[host::m.current / 32].gate, 32); }
inline void sync_some(int number, int count) { host::wait(host::m.some[number], count); }
template <class T>
T from_lane_xor(T v, int mask) {
  const int me = lane();
  return host::slot<T>(host::exchange(v), me ^ mask);
}
inline uint32_t ballot(bool v) {
  const auto* all = host::exchange(v);
  uint32_t mask = 0;
  for (int i = 0; i < 32; ++i) mask |= uint32_t(host::slot<bool>(all, i)) << i;
  return mask;
}
inline uint32_t warp_sum(uint32_t v) {
  const auto* all = host::exchange(v);
  uint32_t total = 0;
  for (int i = 0; i < 32; ++i) total += host::slot<uint32_t>(all, i);
  return total;
}
inline int bits_set(uint32_t v) { return __builtin_popcount(v); }
inline uint32_t bits_of(float v) {
  uint32_t b;
  std::memcpy(&b, &v, 4);
  return b;
}
inline uint64_t bits_of(double v) {
  uint64_t b;
  std::memcpy(&b, &v, 8);
  return b;
}
inline float float_of(uint32_t b) {
  float v;
  std::memcpy(&v, &b, 4);
  return v;
}

// ---- numbers; compiled with -ffp-contract=off

inline float larger(float a, float b) { return std::fmax(a, b); }
inline double larger(double a, double b) { return std::fmax(a, b); }
inline float fused(float a, float b, float c) { return float(double(a) * double(b) + double(c)); }
inline double product(double a, double b) { return a * b; }
inline double sum(double a, double b) { return a + b; }
inline double exact_fused(double a, double b, double c) { return a * b + c; }
inline double square_root(double a) { return std::sqrt(a); }
inline double reciprocal(double a) { return 1 / a; }
inline int exponent(double a) { return std::ilogb(a); }
inline double power_of_two(int e) { return std::ldexp(1.0, e); }
inline float float_up(double a) {
  const float f = float(a);
  return double(f) < a ? std::nextafter(f, std::numeric_limits<float>::infinity()) : f;
}
inline float infinity_float() { return std::numeric_limits<float>::infinity(); }
inline double no_number() { return std::numeric_limits<double>::quiet_NaN(); }

struct Half {
  uint16_t bits;
  static constexpr int top = 14;
  static Half from(float v) {
    const double a = std::fabs(double(v));
    const uint16_t sign = std::signbit(v) ? 0x8000 : 0;
    if (!(a == a)) return {uint16_t(sign | 0x7e00)};
    if (a >= 65520) return {uint16_t(sign | 0x7c00)};
    const int e = a < 0x1p-14 ? -14 : std::ilogb(a);
    const int whole = int(std::nearbyint(std::ldexp(a, 10 - e)));  // ties to even
    return {uint16_t(sign + (a < 0x1p-14 ? whole : ((e + 14) << 10) + whole))};
  }
  float value() const {
    // The exponent's bias differs by 112: a product corrects it, for subnormal numbers, too.
    const uint32_t magnitude = uint32_t(bits & 0x7fff) << 13;
    const float a = (bits & 0x7c00) == 0x7c00 ? float_of(magnitude | 0x7f800000)
                                                : float_of(magnitude) * 0x1p112f;
    return bits & 0x8000 ? -a : a;
  }
};
struct Bf16 {
  uint16_t bits;
  static constexpr int top = 0;
  static Bf16 from(float v) {
    const uint32_t b = bits_of(v);
    if (v != v) return {uint16_t(b >> 16 | 64)};
    return {uint16_t((b + 0x7fff + (b >> 16 & 1)) >> 16)};
  }
  float value() const { return float_of(uint32_t(bits) << 16); }
};

// ---- Ampere

inline void copy_16(void* shared, const void* global) {
  auto& me = host::m.fibers[host::m.current];
  if (++host::m.copied % 2) {
    std::memcpy(shared, global, 16);
  } else {
    me.copies.push_back({shared, global, me.committed});
  }
}
inline void copies_commit() { ++host::m.fibers[host::m.current].committed; }
template <int pending>
void copies_wait() {
  auto& me = host::m.fibers[host::m.current];
  std::vector<host::Copy> later;
  for (const auto& c : me.copies) {
    if (c.group < me.committed - pending) {
      std::memcpy(c.to, c.from, 16);
    } else {
      later.push_back(c);
    }
  }
  me.copies.swap(later);
}

inline void load_matrices(uint32_t (&r)[4], const void* row) {
  const int me = lane();
  const auto* rows = host::exchange(row);
  for (int i = 0; i < 4; ++i) {
    const char* from = host::slot<const char*>(rows, 8 * i + me / 4);
    std::memcpy(&r[i], from + 4 * (me % 4), 4);
  }
}

// What a tensor core makes of an exact sum, at worst.
inline float truncated(double v) {
  const float f = float(v);
  return std::fabs(double(f)) > std::fabs(v) ? std::nextafter(f, 0.0f) : f;
}

template <class T>
void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, T) {
  struct Given {
    float a[4][2], b[2][2];
  };
  const int me = lane(), g = me / 4, t = me % 4;
  Given mine;
  for (int i = 0; i < 2; ++i) {
    for (int r = 0; r < 4; ++r) mine.a[r][i] = T{uint16_t(a[r] >> 16 * i)}.value();
    mine.b[0][i] = T{uint16_t(b0 >> 16 * i)}.value();
    mine.b[1][i] = T{uint16_t(b1 >> 16 * i)}.value();
  }
  const auto* all = host::exchange(mine);
  for (int i = 0; i < 4; ++i) {
    const int row = g + 8 * (i / 2), column = 2 * t + i % 2;
    double total = double(d[i]);
    for (int k = 0; k < 16; ++k) {
      // a: register by (row half, k half), lane by (row % 8, pair of k); b: by k half, (column, pair).
      const auto& left = *reinterpret_cast<const Given*>(all[4 * (row % 8) + k % 8 / 2]);
      const auto& right = *reinterpret_cast<const Given*>(all[4 * column + k % 8 / 2]);
      total += double(left.a[row / 8 + 2 * (k / 8)][k % 2]) * double(right.b[k / 8][k % 2]);
    }
    d[i] = truncated(total);
  }
}

// ---- Hopper

#define CO_HOPPER 1
inline void stop() { std::abort(); }

struct Barrier {
  uint8_t phase, count, pending, unused;
  int32_t bytes;
};
inline void barrier_check(Barrier* b) {
  if (b->pending != 0 || b->bytes != 0) return;
  b->pending = b->count;
  b->phase ^= 1;
}
inline void barrier_init(Barrier* b, uint32_t count) {
  *b = {0, uint8_t(count), uint8_t(count), 0, 0};
}
inline void barriers_ready() {}
inline void barrier_arrive(Barrier* b) {
  --b->pending;
  barrier_check(b);
}
inline void barrier_expect(Barrier* b, uint32_t bytes) {
  b->bytes += int32_t(bytes);
  barrier_arrive(b);
}
inline void barrier_wait(Barrier* b, uint32_t parity) {
  while (b->phase == parity) host::yield();
}
inline void bulk_copy(void* shared, const void* global, uint32_t bytes, Barrier* b) {
  host::yield();  // others may look before it has landed
  std::memcpy(shared, global, bytes);
  b->bytes -= int32_t(bytes);
  barrier_check(b);
}
template <int registers>
void more_registers() {}
template <int registers>
void fewer_registers() {}

// The fields are those of the hardware; addresses count from the start of shared memory.
inline uint64_t matrix_descriptor(const void* slice, int first_row, int piece) {
  const int64_t address = static_cast<const char*>(slice) - host::m.shared + first_row * 128 + piece * 16;
  return uint64_t(address >> 4 & 0x3fff) | uint64_t(1) << 16 | uint64_t(1024 >> 4) << 32 |
         uint64_t(1) << 62;
}
inline void hold(float (&)[128]) {}
inline void products_begin() {}
inline void products_commit() {}
// A warp's lanes are together here, as `.sync.aligned` has it.
template <int pending>
void products_wait() {
  sync_warp();
}

// Element (row, k) of a matrix whose rows have 128 bytes: bits 4 to 6 of its address are swizzled
// by bits 7 to 9.
template <class T>
float element(uint64_t descriptor, int row, int k) {
  const int64_t rows = int64_t(descriptor >> 32 & 0x3fff) << 4;
  int64_t address = int64_t(descriptor & 0x3fff) << 4;
  address += row / 8 * rows + row % 8 * 128 + k * 2;
  address ^= (address >> 7 & 7) << 4;
  T v;
  std::memcpy(&v, host::m.shared + address, 2);
  return v.value();
}
template <class T>
void multiply_64x256(float (&d)[128], uint64_t a, uint64_t b, bool add, T) {
  const int warp = host::m.current / 32 % 4, g = lane() / 4, t = lane() % 4;
  float left[2][16];
  for (int h = 0; h < 2; ++h)
    for (int k = 0; k < 16; ++k) left[h][k] = element<T>(a, 16 * warp + 8 * h + g, k);
  for (int j = 0; j < 32; ++j) {
    for (int i = 0; i < 2; ++i) {
      double total[2] = {};
      for (int k = 0; k < 16; ++k) {
        const double right = double(element<T>(b, 8 * j + 2 * t + i, k));
        for (int h = 0; h < 2; ++h) total[h] += double(left[h][k]) * right;
      }
      for (int h = 0; h < 2; ++h) {
        float& to = d[4 * j + 2 * h + i];
        to = truncated(total[h] + (add ? double(to) : 0.0));
      }
    }
  }
}

// ---- launching

template <class Kernel>
int launch(const typename Kernel::Params& p, int64_t blocks, int64_t shared_bytes, void*) {
  using namespace host;
  if (blocks == 0) return 0;
  const std::lock_guard<std::mutex> lock(busy);
  static const typename Kernel::Params* params;
  params = &p;
  m.body = [] { Kernel::run(*params, m.shared); };
  m.threads = Kernel::threads;
  m.blocks = blocks;
  m.shared_bytes = shared_bytes;
  m.memory.resize(size_t(shared_bytes) + 2048);
  m.shared = m.memory.data() + (1024 - reinterpret_cast<uintptr_t>(m.memory.data()) % 1024);
  m.everyone = {};
  for (auto& b : m.some) b = {};
  m.warps.assign(size_t(m.threads / 32), Warp{});
  if (m.fibers.size() < size_t(m.threads)) m.fibers.resize(size_t(m.threads));
  for (int i = 0; i < m.threads; ++i) {
    Fiber& fiber = m.fibers[i];
    if (fiber.stack.empty()) fiber.stack.resize(64 << 10);
    fiber.started = fiber.done = false;
    fiber.copies.clear();
    fiber.committed = 0;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, start, 0);
  }
  run_all();
  return 0;
}

struct Machine {
  int multiprocessors = 1, major = 8, error = 0;
};
inline Machine machine() { return {}; }
template <class Kernel>
int source_architecture(int& found) {
  found = 90;
  return 0;
}
inline const char* error_text(int) { return "no error"; }

}  // namespace contrastive_ops::cuda
