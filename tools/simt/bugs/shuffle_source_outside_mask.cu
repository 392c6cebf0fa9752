// The first 8 lanes shuffle among themselves, but read a ninth.
#include "bug.h"

template <bool kFixed>
__global__ void shuffle_source_outside_mask(float* out, const float* in) {
  const int i = threadIdx.x;
  float value = in[i];
  if (i < 8) value = __shfl_sync(0xffu, value, kFixed ? 7 : 8);  // <- named
  out[i] = value;
}
BUG(shuffle_source_outside_mask, 1, 32, 0)
