// Sums a shared array of which only the first half was filled.
#include "bug.h"

template <bool kFixed>
__global__ void unwritten_shared(float* out, const float* in) {
  SIMT_SHARED(values, float[64]);
  const int i = threadIdx.x;
  if (kFixed || i < 32) values[i] = in[i];
  __syncthreads();
  out[i] = values[63 - i];  // <- named
}
BUG(unwritten_shared, 1, 64, 0)
