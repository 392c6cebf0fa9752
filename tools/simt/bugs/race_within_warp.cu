// A shuffle makes the lanes wait for each other, but orders no memory: __syncwarp does.
#include "bug.h"

template <bool kFixed>
__global__ void race_within_warp(float* out, const float* in) {
  SIMT_SHARED(values, float[32]);
  const int i = threadIdx.x;
  values[i] = 0.0f;
  __syncthreads();
  values[i] = in[i];  // <- named
  const float lowest = __shfl_sync(0xffffffffu, in[i], 0);
  if (kFixed) __syncwarp();
  out[i] = lowest + values[i ^ 1];  // <- named
}
BUG(race_within_warp, 1, 32, 0)
