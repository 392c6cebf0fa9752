// The barrier after the reads is missing: the next round overwrites what a slow warp still reads.
#include "bug.h"

template <bool kFixed>
__global__ void race_on_reuse(float* out, const float* in) {
  SIMT_SHARED(values, float[64]);
  const int i = threadIdx.x;
  float sum = 0.0f;
  for (int round = 0; round < 3; ++round) {
    values[i] = in[i] + float(round);  // <- named
    __syncthreads();
    sum += values[63 - i];  // <- named
    if (kFixed) __syncthreads();
  }
  out[i] = sum;
}
BUG(race_on_reuse, 1, 64, 0)
