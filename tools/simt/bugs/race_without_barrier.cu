// Reads what another warp writes; the numbers are right whenever that warp happens to be ahead.
#include "bug.h"

template <bool kFixed>
__global__ void race_without_barrier(float* out, const float* in) {
  SIMT_SHARED(values, float[64]);
  const int i = threadIdx.x;
  values[i] = 0.0f;
  __syncthreads();
  values[i] = in[i];  // <- named
  if (kFixed) __syncthreads();
  out[i] = values[63 - i];  // <- named
}
BUG(race_without_barrier, 1, 64, 0)
