// Adds to a result that nobody has set to zero.
#include "bug.h"

template <bool kFixed>
__global__ void unwritten_output(float* out, const float* in) {
  const int i = threadIdx.x;
  if (kFixed) out[i] = 0.0f;
  out[i] += in[i];  // <- named
}
BUG(unwritten_output, 1, 64, 0)
