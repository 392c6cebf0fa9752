// The mean over the tokens that count: docs/method.md "Wider routing", mask.
#pragma once

#include "cuda/launch.h"
#include "cuda/warp.cuh"

namespace moge::cuda {

// Grid: one block.
__global__ void __launch_bounds__(kThreads)
    count_tokens_kernel(const uint8_t* mask, int64_t num_tokens, const float* value, float* mean) {
  SIMT_SHARED(counts, int64_t[kThreads]);
  const int thread = int(threadIdx.x);
  int64_t count = 0;
  for (int64_t token = thread; token < num_tokens; token += kThreads) count += mask[token] != 0;
  counts[thread] = count;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (thread < half) counts[thread] += counts[thread + half];
    __syncthreads();
  }
  if (thread == 0) *mean = float(double(*value) / double(counts[0] < 1 ? 1 : counts[0]));
}

}  // namespace moge::cuda
