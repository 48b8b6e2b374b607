// Rows to 16 bits, with what is lost on the way.
#pragma once
#include "rows.h"

namespace contrastive_ops::cuda {

// A block prepares 32 rows, eight lanes each, and one group's bounds.
template <class E>
struct Prepare {
  static constexpr int threads = 8 * group_size;
  static constexpr int blocks_per_multiprocessor = 4;
  static constexpr int shared_bytes = 2 * group_size * int(sizeof(float));
  struct Params {
    Selection s;
    bool candidates;
  };

  static CO_DEVICE void run(const Params& p, char* shared) {
    using R = typename E::R;
    using T = typename E::Scanned;
    const Selection& s = p.s;
    const int part = thread() % 8, place = thread() / 8;
    const int64_t row = block() * group_size + place;
    const int64_t first = p.candidates ? s.chunk_begin : 0;
    const int64_t end = p.candidates ? s.count : s.rows;
    const bool real = first + row < end;
    const void* from = E::row(p.candidates ? s.y : s.x, p.candidates ? s.y_stride : s.x_stride,
                              real ? first + row : 0);

    double square = 0, most = 0;
    for (int64_t i = part; i < s.slices * depth_step; i += 8) {
      const double v = real && i < s.dim ? double(E::at(from, i)) : 0.0;
      square = add_product<R>(square, v, v);
      most = larger(most, v < 0 ? -v : v);
    }
    square = sum_of_eight(square);
    for (int mask = 4; mask > 0; mask /= 2) most = larger(most, from_lane_xor(most, mask));
    double norm = square_root(square), factor = norm == norm ? 1 : no_number();
    if (s.normalize) {
      const double inverse = reciprocal(norm);
      // An infinite norm: 0 times infinity is no direction.
      const bool usable = inverse > 0 && inverse < double(infinity_float());
      factor = norm == 0 ? 0 : usable ? inverse : no_number();
      norm = norm == 0 ? 0 : usable ? 1 : no_number();
    }
    if (!real) factor = norm = no_number();

    // 16-bit rows times a power of two lose nothing unless their range is extreme.
    bool usable = most > 0 && most < double(infinity_float()) && factor == factor;
    const double shift = usable ? power_of_two(T::top - exponent(most)) : 0;
    const float scale = usable ? float(factor / shift) : 1.0f;
    usable = usable && scale >= 0x1p-100f && scale <= 0x1p100f;
    double lost = 0;
    for (int64_t slice = 0; slice < s.slices; ++slice) {
      char* to = static_cast<char*>(p.candidates ? s.y_slices : s.x_slices) +
                 slice_offset(row / panel_rows, slice, s.slices);
      for (int piece = 0; piece < 8; ++piece) {
        const int64_t i = slice * depth_step + piece * 8 + part;
        const double v = usable && i < s.dim ? double(E::at(from, i)) : 0.0;
        const T coarse = T::from(float(v * (usable ? shift : 0)));
        const double left = double(R(v * (usable ? factor : 0))) - double(coarse.value()) * scale;
        lost += left * left;
        reinterpret_cast<T*>(to + in_slice(int(row % panel_rows), piece))[part] = coarse;
      }
    }
    lost = square_root(sum_of_eight(lost)) * 1.000001;
    const float residual = float_up(usable ? lost : norm);
    if (!p.candidates) {
      if (part == 0) {
        s.x_factor[row] = factor;
        s.x_norm[row] = norm;
        s.x_residual[row] = residual;
        s.x_scale[row] = usable ? scale : 1.0f;
      }
      return;
    }
    const bool candidate = norm == norm;
    float* norms = reinterpret_cast<float*>(shared);
    float* residuals = norms + group_size;
    if (part == 0) {
      if (real) s.y_factor[first + row] = factor;
      s.y_scale[row] = usable ? scale : 1.0f;
      s.y_bias[row] = !candidate ? -infinity_float()
                      : s.l2     ? larger(float(-0.5 * norm * norm), -0x1.fffffep127f)
                                 : 0.0f;
      norms[place] = candidate ? float_up(norm) : -1.0f;
      residuals[place] = candidate ? residual : 0.0f;
    }
    sync_block();
    if (thread() == 0) {
      float norm_of_group = -1, residual_of_group = 0;
      for (int i = 0; i < group_size; ++i) {
        norm_of_group = larger(norm_of_group, norms[i]);
        residual_of_group = larger(residual_of_group, residuals[i]);
      }
      s.y_norm[block()] = norm_of_group;
      s.y_residual[block()] = residual_of_group;
    }
  }
};

}  // namespace contrastive_ops::cuda
