// The filter of the group norm, and its adjoint, on the rows of the map that a lane of a sub-warp
// holds (subwarp.cuh).
#pragma once

#include "cuda/subwarp.cuh"

namespace moge::cuda {

// The taps of a call, in device memory, and those of a thread: the same along the rows and down the
// columns, 0 beyond the group size. Gaussian taps are mirrored and none is larger than the middle
// one: over it, a pair of equal taps takes one addition and one multiply-add, and the middle none.
struct TapSource {
  const double* taps;
  int group_size;
};
template <class Map>
struct SubTaps {
  float values[Map::kGroup > 0 ? Map::kGroup : 1];

  __device__ __forceinline__ explicit SubTaps(const TapSource& source) {
    const float over = Map::kOverMiddle ? approximate_reciprocal(unit(source)) : 1.0f;
#pragma unroll
    for (int u = 0; u < Map::kGroup; ++u) {
      // Only a torus takes filters smaller than its own.
      const bool there = !Map::kTorus || u < source.group_size;
      values[u] = there ? float(source.taps[u]) * over : 0.0f;
    }
  }

  // What `values` are over; read again where it is needed, at the beginning or the end.
  static __device__ __forceinline__ float unit(const TapSource& source) {
    return Map::kOverMiddle ? float(source.taps[Map::kGroup / 2]) : 1.0f;
  }

  // The sum of taps[u] cell(u), over the unit, of the cells that there are: of floats or of pairs,
  // which are `together` (pairs.cuh) where in_pair(u).
  template <class Has, class InPair, class Cell>
  __device__ __forceinline__ auto weigh(Has has, InPair in_pair, Cell cell) const {
    constexpr int kMiddle = Map::kGroup / 2;
    decltype(cell(0)) sum = {};
    bool any = false, together = true;
    const auto add_to = [&](float tap, auto value, bool paired) {
      sum = any ? multiply_add(tap, value, sum, paired && together) : multiply(tap, value, paired);
      any = together = true;
    };
    if constexpr (Map::kOverMiddle) {
      if (has(kMiddle)) sum = cell(kMiddle), any = true, together = in_pair(kMiddle);
#pragma unroll
      for (int u = kMiddle - 1; u >= 0; --u) {
        const int mirrored = 2 * kMiddle - u;  // in a pair where u is
        if (has(u) && has(mirrored)) {
          add_to(values[u], add(cell(u), cell(mirrored), in_pair(u)), true);
        } else if (has(u) || has(mirrored)) {
          add_to(values[u], cell(has(u) ? u : mirrored), in_pair(u));
        }
      }
    } else {
#pragma unroll
      for (int u = 0; u < Map::kGroup; ++u) {
        if (has(u)) add_to(values[u], cell(u), in_pair(u));
      }
    }
    return sum;
  }
  template <class InPair, class Cell>
  __device__ __forceinline__ auto weigh(InPair in_pair, Cell cell) const {
    return weigh([](int) { return true; }, in_pair, cell);
  }
};

// Down the columns two neighbouring sums are of pairs. Along the rows they are where the distance u
// is even: pairs begin at even entries, as the sums do, and a row has an even number of them.
__device__ __forceinline__ bool all_in_pairs(int) { return true; }
__device__ __forceinline__ bool even_in_pairs(int u) { return u % 2 == 0; }

// The filter of docs/method.md along the rows of a lane: sums[r][j] = sum_v taps[v] (row r)[j + v]
// over `epsilon` + squares of `scores`. As the taps of both directions sum to 1, what
// filter_columns makes of it is epsilon more than that of the squares, and the addition costs
// nothing.
template <class Map>
__device__ __forceinline__ void filter_rows(const SubTaps<Map>& taps, float epsilon,
                                            const float (&scores)[Map::kSlots],
                                            float (&sums)[Map::kOwnRows][Map::kGroupCols]) {
  float squares[Map::kSlots];
#pragma unroll
  for (int i = 0; i < Map::kSlots; i += 2) {
    const float2 pair = pair_at(scores, i);
    set_at(squares, i, multiply_add(pair, pair, {epsilon, epsilon}));
  }
#pragma unroll
  for (int r = 0; r < Map::kOwnRows; ++r) {
    const auto square = [&](int j) { return squares[r * Map::kCols + j % Map::kCols]; };
#pragma unroll
    for (int j = 0; j < Map::kGroupCols; j += 2) {
      if (j + 1 < Map::kGroupCols) {
        const auto cell = [&](int v) { return float2{square(j + v), square(j + v + 1)}; };
        set_at(sums[r], j, taps.weigh(even_in_pairs, cell));
      } else {
        sums[r][j] = taps.weigh(all_in_pairs, [&](int v) { return square(j + v); });
      }
    }
  }
}

// Entry `j` of the row that lies `ahead` rows below the lane's first (above it where negative).
template <class Map, int kAhead>
__device__ __forceinline__ float neighbour(const float (&rows)[Map::kOwnRows][Map::kGroupCols],
                                           int j, int sub) {
  constexpr int kWrapped = (kAhead % Map::kRows + Map::kRows) % Map::kRows;
  constexpr int kDistance = kWrapped / Map::kOwnRows;
  const float own = rows[kWrapped % Map::kOwnRows][j];
  if constexpr (kDistance == 0) return own;
  return shuffle_from<Map::kLanes>(own, sub + kDistance);
}

// Calls finish(r, j, sums) for the positions j and j + 1 of the lane's row r, finish(r, j, sum) for
// one that is left: sum_u taps[u] (row r + u)[j], or with kDown (row r - u)[j].
template <class Map, bool kDown, class Finish, int... kNeighbours>
__device__ __forceinline__ void filter_columns(const SubTaps<Map>& taps,
                                               const float (&rows)[Map::kOwnRows][Map::kGroupCols],
                                               int sub, Finish finish,
                                               std::integer_sequence<int, kNeighbours...>) {
  constexpr int kOwn = Map::kOwnRows, kFirst = kDown ? 1 - Map::kGroup : 0;
#pragma unroll
  for (int j = 0; j < Map::kGroupCols; j += 2) {
    // The lane's own rows, with those of its neighbours above or below.
    const float column[] = {neighbour<Map, kFirst + kNeighbours>(rows, j, sub)...};
    const auto row = [](int r, int u) { return kDown ? r + Map::kGroup - 1 - u : r + u; };
    if (j + 1 < Map::kGroupCols) {
      const float next[] = {neighbour<Map, kFirst + kNeighbours>(rows, j + 1, sub)...};
#pragma unroll
      for (int r = 0; r < kOwn; ++r) {
        const auto cell = [&](int u) { return float2{column[row(r, u)], next[row(r, u)]}; };
        finish(r, j, taps.weigh(all_in_pairs, cell));
      }
    } else {
#pragma unroll
      for (int r = 0; r < kOwn; ++r) {
        finish(r, j, taps.weigh(all_in_pairs, [&](int u) { return column[row(r, u)]; }));
      }
    }
  }
}
template <class Map, bool kDown, class Finish>
__device__ __forceinline__ void filter_columns(const SubTaps<Map>& taps,
                                               const float (&rows)[Map::kOwnRows][Map::kGroupCols],
                                               int sub, Finish finish) {
  filter_columns<Map, kDown>(taps, rows, sub, finish,
                             std::make_integer_sequence<int, Map::kOwnRows + Map::kGroup - 1>());
}

// The transpose of filter_rows: slopes[r, i] = sum_v taps[v] (row r)[i - v].
template <class Map>
__device__ __forceinline__ void scatter_rows(const SubTaps<Map>& taps,
                                             const float (&rows)[Map::kOwnRows][Map::kGroupCols],
                                             float (&slopes)[Map::kSlots]) {
#pragma unroll
  for (int i = 0; i < Map::kSlots; i += 2) {
    const int r = i / Map::kCols, first = i % Map::kCols;
    const auto place = [](int col, int v) {
      return Map::kTorus ? (col - v + 2 * Map::kCols) % Map::kCols : col - v;
    };
    if (Map::kTorus || (first + 1 < Map::kGroupCols && first >= Map::kGroup - 1)) {
      const auto cell = [&](int v) {
        return float2{rows[r][place(first, v)], rows[r][place(first + 1, v)]};
      };
      set_at(slopes, i, taps.weigh(even_in_pairs, cell));
    } else {
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        const auto at = [&](int v) { return place(first + side, v); };
        slopes[i + side] = taps.weigh([&](int v) { return at(v) >= 0 && at(v) < Map::kGroupCols; },
                                      all_in_pairs, [&](int v) { return rows[r][at(v)]; });
      }
    }
  }
}

// Whether row r of the lane starts groups.
template <class Map>
__device__ __forceinline__ bool starts_groups(int sub, int r) {
  return Map::kTorus || sub * Map::kOwnRows + r < Map::kGroupRows;
}

}  // namespace moge::cuda
