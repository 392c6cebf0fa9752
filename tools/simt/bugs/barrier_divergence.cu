// Only the first warp reaches the barrier inside the branch.
#include "bug.h"

template <bool kFixed>
__global__ void barrier_divergence(float* out, const float* in) {
  const int i = threadIdx.x;
  float value = in[i];
  if (!kFixed && i < 32) {
    __syncthreads();  // <- named
    value += 1.0f;
  }
  __syncthreads();  // <- named
  out[i] = value;
}
BUG(barrier_divergence, 1, 64, 0)
