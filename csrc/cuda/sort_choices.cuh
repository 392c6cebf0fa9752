// The order of dispatch: a stable counting sort of the R = T k choices by expert.
//
// The choices are cut into one contiguous run a warp, and every warp counts and later places its
// own run with a row of N counters in shared memory, without atomics and without block barriers:
//
//   count     a warp's choices of every expert, (warps, N)
//   prefix    for every expert, over the warps before: one warp an expert, 32 counts at a time
//   place     where an expert begins, from the N totals, plus the prefix, plus the rank in the run
//
// Equal experts within the 32 choices of a step are found by a match of the lanes, and ranked by
// lane, which keeps the order of the choices. What limits it: the latency of the steps of a run;
// the number of warps grows with R until a run has 256 choices at 512 warps.
#pragma once

#include "cuda/launch.h"
#include "cuda/warp.cuh"

namespace moge::cuda {

constexpr int kRunChoices = 256;
constexpr int kMaxRunBlocks = 64;

inline int count_run_blocks(int64_t num_choices) {
  const int64_t blocks = (num_choices + kRunChoices * kWarps - 1) / (kRunChoices * kWarps);
  return blocks < 1 ? 1 : blocks > kMaxRunBlocks ? kMaxRunBlocks : int(blocks);
}

struct SortParts {
  int* counts;      // (warps, N): of the warp's run, then of the runs before it
  int* totals;      // (N)
  unsigned* bad;    // (warps): first choice that is neither -1 nor an expert, or kNoChoice
  int num_runs;     // warps
  int run_choices;  // a multiple of 32
};
constexpr unsigned kNoChoice = 0xffffffffu;

inline SortParts make_sort_parts(void* workspace, int64_t num_choices, int num_experts) {
  SortParts parts;
  parts.num_runs = count_run_blocks(num_choices) * kWarps;
  parts.run_choices = int((num_choices + parts.num_runs * 32 - 1) / (parts.num_runs * 32) * 32);
  parts.counts = static_cast<int*>(workspace);
  parts.totals = parts.counts + int64_t(parts.num_runs) * num_experts;
  parts.bad = reinterpret_cast<unsigned*>(parts.totals + num_experts);
  return parts;
}
inline int64_t sort_parts_bytes(int64_t num_choices, int num_experts) {
  const int64_t runs = int64_t(count_run_blocks(num_choices)) * kWarps;
  return 4 * (runs * num_experts + num_experts + runs);
}

// Walks the warp's run in order: emit(choice, expert, position) with the position that the warp's
// counters give, which then move on; -1 for a choice that is dropped.
template <class Emit>
__device__ __forceinline__ void walk_run(const SortChoices& args, const SortParts& parts, int run,
                                         int lane, int* counters, Emit emit) {
  const int64_t num_choices = args.num_tokens * args.top_k;
  const int64_t begin = int64_t(run) * parts.run_choices;
  const int64_t last = begin + parts.run_choices;
  const int64_t end = last < num_choices ? last : num_choices;
  for (int64_t first = begin; first < end; first += 32) {
    const int64_t choice = first + lane;
    const int64_t expert = choice < end ? args.experts[choice] : -1;
    const bool kept = uint64_t(expert) < uint64_t(args.num_experts);
    const unsigned same = __match_any_sync(kAllLanes, kept ? int(expert) : -1);
    const int before = __popc(same & ((1u << lane) - 1u));
    const int position = kept ? counters[expert] + before : -1;
    __syncwarp();
    if (kept && before == 0) counters[expert] += __popc(same);
    __syncwarp();
    if (choice < end) emit(choice, expert, position);
  }
}

// Grid: count_run_blocks(R). Dynamic shared memory: 8 rows of N counters.
__global__ void __launch_bounds__(kThreads)
    count_choices_kernel(const SortChoices args, const SortParts parts) {
  SIMT_SHARED_DYN(int, rows);
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, n = args.num_experts;
  const int run = int(blockIdx.x) * kWarps + warp;
  int* counters = rows + warp * n;
  for (int expert = lane; expert < n; expert += 32) counters[expert] = 0;
  __syncwarp();
  unsigned bad = kNoChoice;
  walk_run(args, parts, run, lane, counters, [&](int64_t choice, int64_t expert, int position) {
    if (position < 0 && expert != -1 && unsigned(choice) < bad) bad = unsigned(choice);
  });
  for (int expert = lane; expert < n; expert += 32) {
    parts.counts[int64_t(run) * n + expert] = counters[expert];
  }
  bad = __reduce_min_sync(kAllLanes, bad);
  if (lane == 0) parts.bad[run] = bad;
}

// Grid: a warp an expert, and one for the first bad row.
__global__ void __launch_bounds__(kThreads)
    prefix_choices_kernel(const SortChoices args, const SortParts parts) {
  const int lane = int(threadIdx.x) % 32, n = args.num_experts;
  const int expert = int(blockIdx.x) * kWarps + int(threadIdx.x) / 32;
  if (expert == n && args.bad_row != nullptr) {
    unsigned bad = kNoChoice;
    for (int run = lane; run < parts.num_runs; run += 32) bad = min(bad, parts.bad[run]);
    bad = __reduce_min_sync(kAllLanes, bad);
    if (lane == 0) *args.bad_row = bad == kNoChoice ? -1 : int64_t(bad) / args.top_k;
  }
  if (expert >= n) return;
  int total = 0;
  for (int first = 0; first < parts.num_runs; first += 32) {
    const int run = first + lane;
    int* at = parts.counts + int64_t(run) * n + expert;
    const int count = run < parts.num_runs ? *at : 0;
    const int sum = warp_inclusive_sum(count, lane);
    if (run < parts.num_runs) *at = total + sum - count;
    total += __shfl_sync(kAllLanes, sum, 31);
  }
  if (lane == 0) parts.totals[expert] = total;
}

// The first position of every expert to `starts` (N + 1), by the whole block; ends in a barrier.
__device__ __forceinline__ void find_starts(const int* totals, int n, int* starts) {
  constexpr int kShare = 1024 / kThreads;
  SIMT_SHARED(warp_sums, int[kWarps]);
  const int thread = int(threadIdx.x), lane = thread % 32, warp = thread / 32;
  int counts[kShare], sum = 0;
#pragma unroll
  for (int i = 0; i < kShare; ++i) {
    const int expert = thread * kShare + i;
    counts[i] = expert < n ? totals[expert] : 0;
    sum += counts[i];
  }
  const int through = warp_inclusive_sum(sum, lane);
  if (lane == 31) warp_sums[warp] = through;
  __syncthreads();
  int start = through - sum;
  for (int before = 0; before < warp; ++before) start += warp_sums[before];
#pragma unroll
  for (int i = 0; i < kShare; ++i) {
    const int expert = thread * kShare + i;
    if (expert < n) starts[expert] = start;
    start += counts[i];
  }
  if (thread == kThreads - 1) starts[n] = start;
  __syncthreads();
}

// Grid: count_run_blocks(R). Dynamic shared memory: 8 rows of N counters, then N + 1 starts.
__global__ void __launch_bounds__(kThreads)
    place_choices_kernel(const SortChoices args, const SortParts parts) {
  SIMT_SHARED_DYN(int, rows);
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, n = args.num_experts;
  const int run = int(blockIdx.x) * kWarps + warp;
  int* counters = rows + warp * n;
  int* starts = rows + kWarps * n;
  find_starts(parts.totals, n, starts);
  for (int expert = lane; expert < n; expert += 32) {
    counters[expert] = starts[expert] + parts.counts[int64_t(run) * n + expert];
  }
  __syncwarp();
  walk_run(args, parts, run, lane, counters, [&](int64_t choice, int64_t, int position) {
    args.positions[choice] = position;
    if (position >= 0) args.slots[position] = int(choice);
  });
  const int64_t num_choices = args.num_tokens * args.top_k;
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  const int64_t thread = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  for (int64_t row = starts[n] + thread; row < num_choices; row += stride) args.slots[row] = -1;
  if (blockIdx.x != 0) return;
  for (int expert = int(threadIdx.x); expert <= n; expert += kThreads) {
    args.offsets[expert] = starts[expert];
  }
}

}  // namespace moge::cuda
