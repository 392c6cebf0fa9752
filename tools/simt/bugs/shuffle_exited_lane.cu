// Lanes beyond the data leave before a shuffle that still names them.
#include "bug.h"

template <bool kFixed>
__global__ void shuffle_exited_lane(float* out, const float* in) {
  const int i = threadIdx.x;
  if (!kFixed && i >= 30) return;
  const float next = __shfl_down_sync(0xffffffffu, in[i], 1);  // <- named
  out[i] = next;
}
BUG(shuffle_exited_lane, 1, 32, 0)
