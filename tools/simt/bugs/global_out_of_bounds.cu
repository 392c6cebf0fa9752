// The last thread has no data: the guard is off by one.
#include "bug.h"

template <bool kFixed>
__global__ void global_out_of_bounds(float* out, const float* in) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < (kFixed ? 64 : 65)) {
    out[i] = 2.0f * in[i];  // <- named
  }
}
BUG(global_out_of_bounds, 3, 32, 0)
