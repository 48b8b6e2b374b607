// The scan for Hopper: bulk copies into a ring of slices, wgmma on 128 x 256 tiles.
//
// Of three warpgroups one feeds and two multiply, 64 rows each. One thread of the first starts the
// copies, its other three warps look up what the next tile's epilogue needs; blocks go on from tile
// to tile, so that the ring is full again when an epilogue ends.
#pragma once
#include "scan.h"

namespace contrastive_ops::cuda {

template <class T>
struct ScanHopper {
  static constexpr int threads = 384;
  static constexpr int blocks_per_multiprocessor = 1;
  static constexpr int width = 256, stages = 4;
  static constexpr int stage_bytes = 3 * slice_bytes;  // 128 rows, and 256 columns in two panels
  static constexpr int lookers = 3, multipliers = 8;   // warps
  // Registers of a thread that feeds and of one that multiplies. A block has what it started with,
  // 168 a thread: asking for more would wait for ever.
  static constexpr int few = 88, many = 208;
  static_assert(few + 2 * many <= 3 * (65536 / threads / 8 * 8));
  using Params = Selection;

  struct Shared {
    char slices[stages][stage_bytes];
    TileTerms<width> terms[2];
    Barrier full[stages], empty[stages], known[2], used[2];
  };
  static constexpr int shared_bytes = int(sizeof(Shared));

  static int64_t tiles(const Selection& s) { return s.padded_rows / panel_rows * (s.chunk / width); }

  // A place in a ring, and the parity of its round.
  template <int size>
  struct Turn {
    int at = 0;
    uint32_t parity = 0;
    CO_DEVICE void next() {
      if (++at == size) at = 0, parity ^= 1;
    }
  };

  static CO_DEVICE void run(const Selection& s, char* shared) {
#if CO_HOPPER
    run_there(s, shared);
#else
    stop();  // compiled for another chip, and never started there
#endif
  }

#if CO_HOPPER
  static CO_DEVICE void run_there(const Selection& s, char* shared) {
    Shared& m = *reinterpret_cast<Shared*>(shared);
    if (thread() == 0) {
      for (int i = 0; i < stages; ++i) {
        barrier_init(&m.full[i], 1);
        barrier_init(&m.empty[i], multipliers);
      }
      for (int i = 0; i < 2; ++i) {
        barrier_init(&m.known[i], lookers);
        barrier_init(&m.used[i], multipliers);
      }
      barriers_ready();
    }
    sync_block();
    const int64_t count = s.padded_rows / panel_rows * (s.chunk / width);
    if (thread() < 128) {
      fewer_registers<few>();
      if (thread() == 0) feed(s, m, count);
      if (thread() >= 32) look_up(s, m, count);
    } else {
      more_registers<many>();
      multiply_tiles(s, m, count);
    }
  }

  static CO_DEVICE void feed(const Selection& s, Shared& m, int64_t count) {
    Turn<stages> turn;
    const char* x = static_cast<const char*>(s.x_slices);
    const char* y = static_cast<const char*>(s.y_slices);
    for (int64_t tile = block(); tile < count; tile += blocks()) {
      const TilePlace at = tile_place<width>(s, tile);
      const int64_t row = at.row / panel_rows, column = at.column / panel_rows;
      for (int64_t slice = 0; slice < s.slices; ++slice, turn.next()) {
        barrier_wait(&m.empty[turn.at], turn.parity ^ 1);
        Barrier* full = &m.full[turn.at];
        char* to = m.slices[turn.at];
        barrier_expect(full, stage_bytes);
        bulk_copy(to, x + slice_offset(row, slice, s.slices), slice_bytes, full);
        for (int i = 0; i < 2; ++i) {
          bulk_copy(to + (1 + i) * slice_bytes, y + slice_offset(column + i, slice, s.slices),
                    slice_bytes, full);
        }
      }
    }
  }

  static CO_DEVICE void look_up(const Selection& s, Shared& m, int64_t count) {
    Turn<2> turn;
    for (int64_t tile = block(); tile < count; tile += blocks(), turn.next()) {
      barrier_wait(&m.used[turn.at], turn.parity ^ 1);
      m.terms[turn.at].fill(s, tile_place<width>(s, tile), thread() - 32, 32 * lookers);
      sync_warp();
      if (lane() == 0) barrier_arrive(&m.known[turn.at]);
    }
  }

  static CO_DEVICE void multiply_tiles(const Selection& s, Shared& m, int64_t count) {
    const int first_row = thread() < 256 ? 0 : 64;
    Turn<stages> turn;
    Turn<2> term;
    float total[128];
    for (int64_t tile = block(); tile < count; tile += blocks(), term.next()) {
      int before = 0;
      for (int64_t slice = 0; slice < s.slices; ++slice, turn.next()) {
        barrier_wait(&m.full[turn.at], turn.parity);
        const char* a = m.slices[turn.at];
        hold(total);
        products_begin();
#pragma unroll
        for (int k = 0; k < depth_step / 16; ++k) {
          multiply_64x256(total, matrix_descriptor(a, first_row, 2 * k),
                          matrix_descriptor(a + slice_bytes, 0, 2 * k), slice > 0 || k > 0, T{});
        }
        products_commit();
        hold(total);
        products_wait<1>();  // the slice before is read
        if (slice > 0 && lane() == 0) barrier_arrive(&m.empty[before]);
        before = turn.at;
      }
      products_wait<0>();
      hold(total);
      if (lane() == 0) barrier_arrive(&m.empty[before]);

      barrier_wait(&m.known[term.at], term.parity);
      const int row = first_row + thread() % 128 / 32 * 16 + lane() / 4;
#pragma unroll
      for (int group = 0; group < width / group_size; ++group) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float value[8];
#pragma unroll
          for (int i = 0; i < 8; ++i) value[i] = total[4 * (4 * group + i / 2) + 2 * half + i % 2];
          emit_group(s, m.terms[term.at], row + 8 * half, group * group_size, value);
        }
      }
      sync_warp();
      if (lane() == 0) barrier_arrive(&m.used[term.at]);
    }
  }
#endif
};

}  // namespace contrastive_ops::cuda
