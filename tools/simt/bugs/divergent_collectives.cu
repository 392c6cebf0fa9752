// Odd and even lanes shuffle at different places, each as if the whole warp were there.
#include "bug.h"

template <bool kFixed>
__global__ void divergent_collectives(float* out, const float* in) {
  const int i = threadIdx.x;
  float value = in[i];
  if (kFixed || i % 2) {
    value = __shfl_xor_sync(0xffffffffu, value, 1);  // <- named
  } else {
    value = __shfl_xor_sync(0xffffffffu, value, 2);  // <- named
  }
  out[i] = value;
}
BUG(divergent_collectives, 1, 32, 0)
