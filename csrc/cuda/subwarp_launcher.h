// Which calls the sub-warp kernels take, and their instantiations.
#pragma once

#include "cuda/launcher.h"
#include "cuda/subwarp_filter.cuh"

namespace moge::cuda {

// Group sizes beyond 3 of small maps, and 1 and 2 on a torus, have no kernels of their own: a
// larger filter whose last taps are 0 does the same where no window ends at an edge.
template <int kRows, int kCols, class Run>
bool with_sub_groups(const GroupMap* groups, Run run) {
  constexpr int kLeast = kRows < kCols ? kRows : kCols;
  if (groups == nullptr) return run(SubMap<kRows, kCols, 0, false>());
  const int h = groups->group_size;
  if (groups->rows != kRows || groups->cols != kCols || groups->stride != 1) return false;
  if (h > kMostTaps) return false;
  if (groups->torus != 0 || h == 1) {
    if (h <= 3) return run(SubMap<kRows, kCols, 3, true>());
    return run(SubMap<kRows, kCols, 5, true>());
  }
  if constexpr (kLeast >= 2) {
    if (h == 2) return run(SubMap<kRows, kCols, 2, false>());
  }
  if constexpr (kLeast >= 3) {
    if (h == 3) return run(SubMap<kRows, kCols, 3, false>());
  }
  if constexpr (kLeast >= 4) {
    if (h == 4) return run(SubMap<kRows, kCols, 4, false>());
  }
  if constexpr (kLeast >= 5) {
    if (h == 5) return run(SubMap<kRows, kCols, 5, false>());
  }
  return false;
}

// A token has 16 units or choices at most, whose numbers are 32-bit.
constexpr int64_t kMostSubTokens = int64_t{1} << 27;

// Calls run(Map()), which returns true, if there is a map for these sizes, and rows and choices
// are as the sub-warp kernels need them; else false.
template <class Run>
bool with_sub_map(int64_t num_tokens, int num_experts, int top_k, const GroupMap* groups,
                  std::initializer_list<const void*> rows, Run run) {
  if (num_tokens > kMostSubTokens || top_k > kMostPicks) return false;
  for (const void* row : rows) {
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0) return false;
  }
  switch (num_experts) {
    case 8:
      return with_sub_groups<2, 4>(groups, run);
    case 16:
      return with_sub_groups<4, 4>(groups, run);
    case 32:
      return with_sub_groups<4, 8>(groups, run);
    case 64:
      return with_sub_groups<8, 8>(groups, run);
    case 128:
      return with_sub_groups<8, 16>(groups, run);
    case 256:
      return with_sub_groups<16, 16>(groups, run);
    default:
      return false;
  }
}

inline TapSource tap_source(const GroupMap* groups) {
  return groups == nullptr ? TapSource{} : TapSource{groups->taps, groups->group_size};
}

}  // namespace moge::cuda
