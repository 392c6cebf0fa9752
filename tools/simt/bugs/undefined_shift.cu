// Shifts a mask by 32 for the last lane: nothing on one processor, everything on another.
#include "bug.h"

template <bool kFixed>
__global__ void undefined_shift(float* out, const float* in) {
  const int i = threadIdx.x;
  const unsigned later = kFixed ? ~0u << 1 << i : ~0u << (i + 1);  // <- named
  out[i] = in[i] + float(__popc(later));
}
BUG(undefined_shift, 1, 32, 0)
