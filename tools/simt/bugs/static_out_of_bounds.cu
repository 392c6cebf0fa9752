// A halo of one on each side of 64 values, in an array with room for one side.
#include "bug.h"

template <bool kFixed>
__global__ void static_out_of_bounds(float* out, const float* in) {
  SIMT_SHARED(tile, float[kFixed ? 66 : 65]);
  const int i = threadIdx.x;
  float* row = tile;
  if (i == 0) row[0] = 0.0f;
  row[i + 1] = in[i];
  if (i == 63) row[65] = 0.0f;  // <- named
  __syncthreads();
  out[i] = row[i] + row[i + 2];
}
BUG(static_out_of_bounds, 1, 64, 0)
