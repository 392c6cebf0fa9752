// The launch gives 64 floats, the kernel reads a 65th.
#include "bug.h"

template <bool kFixed>
__global__ void dynamic_out_of_bounds(float* out, const float* in) {
  SIMT_SHARED_DYN(float, values);
  const int i = threadIdx.x;
  values[i] = in[i];
  __syncthreads();
  out[i] = values[kFixed ? (i + 1) % 64 : i + 1];  // <- named
}
BUG(dynamic_out_of_bounds, 1, 64, 64 * sizeof(float))
