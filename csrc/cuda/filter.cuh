// The topographic filter of docs/method.md on one token's map, by one warp, in its slice of shared
// memory.
//
//   a[i, j] = sum_u row_taps[u] sum_v col_taps[v] z[i + u, j + v]^2        (gather_squares)
//   d[i, j] = sum_u row_taps[u] sum_v col_taps[v] w[i - u, j - v]          (its adjoint, scatter)
//
// The map is the row of N scores itself: position f = row cols + col. Lane l works on f = 32 i + l,
// so that whatever the map's shape, the addresses f + v and f + u cols of a warp's loads are 32
// neighbours: no bank conflicts. For the same reason every position is filtered, also those that
// start no group: what comes out there crosses the edges of the map and is not used.
//
// Both passes, along the rows and then down the columns, work in place: all V values of a lane are
// read, and then written. With V > 8 that takes registers that the caller needs: batches of 2 are
// then read and written, upwards where the window looks up and downwards where it looks down, so
// that what later batches read is still untouched. One slice and 64 registers keep half of the
// warps of an SM at N = 1024.
//
// On a torus (indices modulo the map) a window of a late batch returns to the beginning, which has
// been overwritten; where there are several batches, the entries that windows wrap to are copied
// into a margin first.
#pragma once

#include "cuda/warp.cuh"

namespace moge::cuda {

// GroupMap of launch.h as a kernel parameter.
struct Filter {
  const double* taps;  // (group_size), in device memory
  int group_size;
  int rows, cols, num_experts;
  int stride, group_rows, group_cols;
  int num_row_taps, num_col_taps;  // group_size, or less where a torus folds them
  unsigned reciprocal;             // f / cols = f * reciprocal >> 21 for f < 1024
  bool torus;
};

// Floats that the taps of a block take in shared memory: those of the columns, then of the rows.
__host__ __device__ inline int tap_floats(const Filter& filter) {
  return filter.num_col_taps + filter.num_row_taps;
}

// Writes them, by all threads of a block; taps a whole turn apart meet the same entry and are
// added.
__device__ __forceinline__ void stage_taps(const Filter& filter, float* taps) {
  const int total = tap_floats(filter);
  for (int i = int(threadIdx.x); i < total; i += int(blockDim.x)) {
    const bool of_row = i >= filter.num_col_taps;
    const int turn = of_row ? filter.rows : filter.cols;
    double tap = 0.0;
    for (int v = of_row ? i - filter.num_col_taps : i; v < filter.group_size; v += turn) {
      tap += filter.taps[v];
    }
    taps[i] = float(tap);
  }
}

template <int V>
constexpr int kBatch = V <= 8 ? V : 2;

// Floats that the margin of a slice needs.
template <int V>
int margin_floats(const Filter& filter) {
  if (!filter.torus || V <= kBatch<V>) return 0;
  const int along = filter.rows * (filter.num_col_taps - 1);
  const int down = (filter.num_row_taps - 1) * filter.cols;
  return along > down ? along : down;
}

// Bit i is set where position 32 i + lane is the first of a group.
template <int V>
__device__ __forceinline__ unsigned group_mask(const Filter& filter, int lane) {
  unsigned mask = 0;
  for (int i = 0; i < V; ++i) {
    const int position = 32 * i + lane;
    const int row = int(unsigned(position) * filter.reciprocal >> 21);
    const int col = position - row * filter.cols;
    const bool first = row % filter.stride == 0 && row / filter.stride < filter.group_rows &&
                       col % filter.stride == 0 && col / filter.stride < filter.group_cols;
    mask |= unsigned(first) << i;
  }
  return mask;
}

// One pass: sum_t taps[t] slice[f + t step], or with kDown slice[f - t step], of z^2 with kSquare.
// On a torus f stays in its period: cols entries along a row, all N down a column.
// finish(i, sum) gives the value that goes into slot i; without kStore none is written.
template <int V, bool kDown, bool kSquare, bool kStore>
struct Pass {
  const Filter& filter;
  const float* taps;
  int num_taps, step, period;

  __device__ __forceinline__ static float term(float value) {
    return kSquare ? value * value : value;
  }

  // The entry of position `own` that lies `ahead` entries further, on a map with edges. A load
  // beyond the map gives 0; one that crosses an edge of it gives what happens to be there.
  __device__ __forceinline__ float load_valid(const float* slice, int own, int ahead) const {
    const int position = kDown ? own - ahead : own + ahead;
    return unsigned(position) < unsigned(filter.num_experts) ? term(slice[position]) : 0.0f;
  }

  // The same on a torus. With kMargin the wrapped entries come from the margin.
  template <bool kMargin>
  __device__ __forceinline__ float load_torus(const float* slice, const float* margin, int own,
                                              int ahead) const {
    if (own >= filter.num_experts) return 0.0f;
    const bool along = period == filter.cols;
    const int row = along ? int(unsigned(own) * filter.reciprocal >> 21) : 0;
    const int start = row * period, offset = own - start + (kDown ? -ahead : ahead);
    if (unsigned(offset) < unsigned(period)) return term(slice[start + offset]);
    if (!kMargin) return term(slice[start + offset + (kDown ? period : -period)]);
    const int width = (num_taps - 1) * step;
    return term(margin[row * width + offset + (kDown ? width : -period)]);
  }

  // Copies the entries that windows wrap to: the first `width` of every period, or the last.
  __device__ __forceinline__ void save_margin(const float* slice, float* margin, int lane) const {
    const int width = (num_taps - 1) * step;
    if (width == 0) return;
    const int first = kDown ? period - width : 0;
    const int total = period == filter.cols ? filter.rows * width : width;
    for (int i = lane; i < total; i += 32) {
      margin[i] = slice[i / width * period + first + i % width];
    }
    __syncwarp();
  }

  template <bool kTorus, class Finish>
  __device__ __forceinline__ void run(float* slice, float* margin, int lane, Finish finish) const {
    constexpr int B = kBatch<V>;
    constexpr bool kMargin = kTorus && V > B;
    if (kMargin) save_margin(slice, margin, lane);
#pragma unroll 1  // else addresses of all V slots are kept across tokens, and registers spill
    for (int batch = 0; batch < V; batch += B) {
      const int base = kDown ? V - B - batch : batch;
      float sums[B];
#pragma unroll
      for (int i = 0; i < B; ++i) sums[i] = 0.0f;
#pragma unroll 1
      for (int t = 0; t < num_taps; ++t) {
        const float tap = taps[t];
#pragma unroll
        for (int i = 0; i < B; ++i) {
          const int own = 32 * (base + i) + lane;
          const float value = kTorus ? load_torus<kMargin>(slice, margin, own, t * step)
                                     : load_valid(slice, own, t * step);
          sums[i] = fmaf(tap, value, sums[i]);
        }
      }
      if (kStore) __syncwarp();
#pragma unroll
      for (int i = 0; i < B; ++i) {
        const int own = 32 * (base + i) + lane;
        const float value = finish(base + i, sums[i]);
        if (kStore && own < filter.num_experts) slice[own] = value;
      }
    }
    if (kStore) __syncwarp();
  }

  template <class Finish>
  __device__ __forceinline__ void operator()(float* slice, float* margin, int lane,
                                             Finish finish) const {
    if (filter.torus) {
      run<true>(slice, margin, lane, finish);
    } else {
      run<false>(slice, margin, lane, finish);
    }
  }
};

struct Keep {
  __device__ __forceinline__ float operator()(int, float sum) const { return sum; }
};

// Squares the scores of `slice`, filters them and calls finish(i, a) for position 32 i + lane; with
// kStore what that returns is left in the slice. Every lane must see the scores before the call.
template <int V, bool kStore, class Finish>
__device__ __forceinline__ void gather_squares(const Filter& filter, const float* taps,
                                               float* slice, float* margin, int lane,
                                               Finish finish) {
  const float* col_taps = taps;
  const float* row_taps = taps + filter.num_col_taps;
  const Pass<V, false, true, true> along{filter, col_taps, filter.num_col_taps, 1, filter.cols};
  along(slice, margin, lane, Keep());
  const Pass<V, false, false, kStore> down{filter, row_taps, filter.num_row_taps, filter.cols,
                                           filter.num_experts};
  down(slice, margin, lane, finish);
}

// The adjoint of the filter without the squares, in place. Entries that start no group must be 0.
template <int V>
__device__ __forceinline__ void scatter(const Filter& filter, const float* taps, float* slice,
                                        float* margin, int lane) {
  const float* col_taps = taps;
  const float* row_taps = taps + filter.num_col_taps;
  const Pass<V, true, false, true> down{filter, row_taps, filter.num_row_taps, filter.cols,
                                        filter.num_experts};
  down(slice, margin, lane, Keep());
  const Pass<V, true, false, true> along{filter, col_taps, filter.num_col_taps, 1, filter.cols};
  along(slice, margin, lane, Keep());
}

// Sum of the lane's group norms sqrt(a + eps) of the scores in `slice`, which is used up.
template <int V>
__device__ __forceinline__ float sum_norms(const Filter& filter, const float* taps, unsigned groups,
                                           float* slice, float* margin, int lane) {
  float total = 0.0f;
  gather_squares<V, false>(filter, taps, slice, margin, lane, [&](int i, float square) {
    const float norm = approximate_sqrt(square + kEpsilon);
    total += groups >> i & 1u ? norm : 0.0f;
    return norm;
  });
  return total;
}

// Replaces the scores z in `slice` by d = sum over the groups p of an expert of G / g[p]: the
// gradient of the sum of all norms is z d.
template <int V>
__device__ __forceinline__ void norm_slopes(const Filter& filter, const float* taps,
                                            unsigned groups, float* slice, float* margin,
                                            int lane) {
  gather_squares<V, true>(filter, taps, slice, margin, lane, [&](int i, float square) {
    return groups >> i & 1u ? approximate_rsqrt(square + kEpsilon) : 0.0f;
  });
  scatter<V>(filter, taps, slice, margin, lane);
}

}  // namespace moge::cuda
