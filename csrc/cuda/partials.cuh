// Sums over the tokens in a fixed order: every block leaves the part of its chunk of tokens in the
// workspace, and a second kernel adds the parts, so that the result does not depend on which block
// ran first. A flag in memory (the last block adds) would save a launch, but its order of memory is
// hard to prove.
//
// A chunk is a block, and the device runs as many at a time as fit. Their number is a function of
// the number of tokens alone, never of the device. A chunk has at most 256 tokens, over which the
// importance is summed in float32; all further sums are of float64.
#pragma once

#include "cuda/launch.h"
#include "cuda/warp.cuh"

namespace moge::cuda {

constexpr int kLeastChunk = 32, kMostChunk = 256;  // tokens
constexpr int kChunks = 1024;  // fill any device of today; then chunks grow before their number

inline int chunk_size(int64_t num_tokens) {
  int tokens = kLeastChunk;
  while (tokens < kMostChunk && int64_t(tokens) * kChunks < num_tokens) tokens *= 2;
  return tokens;
}
inline int count_blocks(int64_t num_tokens) {
  const int tokens = chunk_size(num_tokens);
  const int64_t blocks = (num_tokens + tokens - 1) / tokens;
  return blocks < 1 ? 1 : int(blocks);
}

// Counts of an expert in a chunk in one word, for one atomic: choices in the lower half, and in
// the upper half those that came first, choice 0.
__device__ __forceinline__ unsigned packed_count(int choice) { return choice == 0 ? 0x10001u : 1u; }

// Per-block parts, in the workspace. importance and load are null in group_norm.
struct Partials {
  double* loss;             // (blocks)
  int64_t *logits, *noise;  // (blocks): first bad row, or kNoRow
  float* importance;        // (blocks, N)
  unsigned* load;           // (blocks, N): packed_count
};
constexpr int64_t kNoRow = int64_t(~uint64_t(0) >> 1);

inline int64_t partial_bytes(int blocks, int num_experts) {
  return int64_t(blocks) * (24 + 8 * int64_t(num_experts));
}
inline Partials make_partials(void* workspace, int blocks, int num_experts) {
  Partials parts;
  parts.loss = static_cast<double*>(workspace);
  parts.logits = reinterpret_cast<int64_t*>(parts.loss + blocks);
  parts.noise = parts.logits + blocks;
  parts.importance = reinterpret_cast<float*>(parts.noise + blocks);
  parts.load = reinterpret_cast<unsigned*>(parts.importance + int64_t(blocks) * num_experts);
  return parts;
}

// What a block keeps of its tokens, besides the importance, in shared memory: registers are scarce.
struct BlockSums {
  float maximum[kWarps];  // of the logits of a warp's token
  float loss[kThreads];   // a thread's sum of group norms
  double warp_loss[kWarps];
  int64_t logits[kWarps], noise[kWarps];  // first bad row of a warp
  unsigned groups[32];                    // group_mask of a lane, the same for all warps
};

__device__ __forceinline__ void clear_sums(BlockSums& sums) {
  sums.loss[threadIdx.x] = 0.0f;
  if (threadIdx.x < kWarps) {
    sums.logits[threadIdx.x] = kNoRow;
    sums.noise[threadIdx.x] = kNoRow;
  }
}

// Notes the first bad row of this warp, in sums.logits or sums.noise.
__device__ __forceinline__ void note_row(int64_t* rows, bool bad, int64_t token) {
  if (!__any_sync(kAllLanes, bad)) return;
  int64_t& first = rows[threadIdx.x / 32];
  if (threadIdx.x % 32 == 0 && first == kNoRow) first = token;
}

// The threads' sums of norms to the warp's; then, after a barrier of the caller, write_sums.
__device__ __forceinline__ void close_warp(BlockSums& sums) {
  const double total = warp_sum(double(sums.loss[threadIdx.x]));
  if (threadIdx.x % 32 == 0) sums.warp_loss[threadIdx.x / 32] = total;
}

__device__ __forceinline__ int64_t earlier(int64_t a, int64_t b) { return a < b ? a : b; }

__device__ __forceinline__ void write_sums(const BlockSums& sums, const Partials& parts) {
  if (threadIdx.x != 0) return;
  double loss = 0.0;
  int64_t logits = kNoRow, noise = kNoRow;
  for (int warp = 0; warp < kWarps; ++warp) {
    loss += sums.warp_loss[warp];
    logits = earlier(logits, sums.logits[warp]);
    noise = earlier(noise, sums.noise[warp]);
  }
  parts.loss[blockIdx.x] = loss;
  parts.logits[blockIdx.x] = logits;
  parts.noise[blockIdx.x] = noise;
}

// One block: group_loss = scale times the sum of the parts, and the first bad rows.
__device__ __forceinline__ void reduce_scalars(const Partials& parts, int blocks, double scale,
                                               float* group_loss, BadRows* bad_rows) {
  SIMT_SHARED(loss, double[kThreads]);
  SIMT_SHARED(logits, int64_t[kThreads]);
  SIMT_SHARED(noise, int64_t[kThreads]);
  const int thread = int(threadIdx.x);
  double sum = 0.0;
  int64_t first_logits = kNoRow, first_noise = kNoRow;
  for (int block = thread; block < blocks; block += kThreads) {
    sum += parts.loss[block];
    first_logits = earlier(first_logits, parts.logits[block]);
    first_noise = earlier(first_noise, parts.noise[block]);
  }
  loss[thread] = sum;
  logits[thread] = first_logits;
  noise[thread] = first_noise;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (thread < half) {
      loss[thread] += loss[thread + half];
      logits[thread] = earlier(logits[thread], logits[thread + half]);
      noise[thread] = earlier(noise[thread], noise[thread + half]);
    }
    __syncthreads();
  }
  if (thread != 0) return;
  *group_loss = float(scale * loss[0]);
  if (bad_rows == nullptr) return;
  bad_rows->logits = logits[0] == kNoRow ? -1 : logits[0];
  bad_rows->noise = noise[0] == kNoRow ? -1 : noise[0];
}

constexpr int kColumns = 8;  // experts of a block: 32 bytes of every part, a whole sector
constexpr int kParts = kThreads / kColumns;

// kColumns experts a block: importance and loads, thread (part, column) adding every 32nd part.
__device__ __forceinline__ void reduce_columns(const Partials& parts, int blocks, int num_experts,
                                               float* importance, int64_t* load,
                                               int64_t* first_load) {
  SIMT_SHARED(sums, double[kThreads]);
  SIMT_SHARED(counts, int64_t[2 * kThreads]);
  const int thread = int(threadIdx.x);
  const int expert = int(blockIdx.x) * kColumns + thread % kColumns;
  double sum = 0.0;
  int64_t count = 0, first_count = 0;
  if (expert < num_experts) {
    for (int block = thread / kColumns; block < blocks; block += kParts) {
      const int64_t at = int64_t(block) * num_experts + expert;
      sum += double(parts.importance[at]);
      count += parts.load[at] & 0xffffu;
      first_count += parts.load[at] >> 16;
    }
  }
  sums[thread] = sum;
  counts[thread] = count;
  counts[kThreads + thread] = first_count;
  __syncthreads();
  if (thread >= kColumns || expert >= num_experts) return;
  for (int part = 1; part < kParts; ++part) {
    sum += sums[part * kColumns + thread];
    count += counts[part * kColumns + thread];
    first_count += counts[kThreads + part * kColumns + thread];
  }
  importance[expert] = float(sum);
  load[expert] = count;
  first_load[expert] = first_count;
}

}  // namespace moge::cuda
