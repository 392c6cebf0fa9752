// Every block adds its sum to one number, without an atomic.
#include "bug.h"

template <bool kFixed>
__global__ void race_between_blocks(float* out, const float* in) {
  if (threadIdx.x == 0) {
    if (kFixed) {
      atomicAdd(&out[0], in[blockIdx.x]);
    } else {
      out[0] += in[blockIdx.x];  // <- named
    }
  }
}
BUG(race_between_blocks, 4, 32, 0)
