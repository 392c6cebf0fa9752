// Scales its input in place.
#include "bug.h"

template <bool kFixed>
__global__ void write_to_input(float* out, const float* in) {
  const int i = threadIdx.x;
  float* target = kFixed ? out : const_cast<float*>(in);
  target[i] = 2.0f * in[i];  // <- named
}
BUG(write_to_input, 1, 64, 0)
