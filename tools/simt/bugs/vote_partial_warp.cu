// A block of 40 threads: the second warp has 8 lanes, the vote names 32.
#include "bug.h"

template <bool kFixed>
__global__ void vote_partial_warp(float* out, const float* in) {
  const int i = threadIdx.x;
  const unsigned present = kFixed && i >= 32 ? 0xffu : 0xffffffffu;
  const int any = __any_sync(present, in[i] > 2.0f);  // <- named
  out[i] = float(any);
}
BUG(vote_partial_warp, 1, 40, 0)
