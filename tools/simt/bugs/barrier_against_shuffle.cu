// Half of the only warp waits at the barrier, the other half at a shuffle that names all lanes.
#include "bug.h"

template <bool kFixed>
__global__ void barrier_against_shuffle(float* out, const float* in) {
  const int i = threadIdx.x;
  float value = in[i];
  if (kFixed || i < 16) value = __shfl_xor_sync(0xffffffffu, value, 1);  // <- named
  __syncthreads();                                                       // <- named
  out[i] = value;
}
BUG(barrier_against_shuffle, 1, 32, 0)
