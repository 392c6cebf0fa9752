// All lanes call a reduction whose mask names the first 16.
#include "bug.h"

template <bool kFixed>
__global__ void caller_outside_mask(float* out, const float* in) {
  const int i = threadIdx.x;
  const unsigned mask = kFixed ? 0xffffffffu : 0xffffu;
  out[i] = in[i] + float(__reduce_max_sync(mask, i));  // <- named
}
BUG(caller_outside_mask, 1, 32, 0)
