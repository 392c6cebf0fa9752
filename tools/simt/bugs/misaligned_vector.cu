// Loads 16 bytes at once from an address that is a multiple of 4 only.
#include "bug.h"

template <bool kFixed>
__global__ void misaligned_vector(float* out, const float* in) {
  const int i = threadIdx.x;
  const auto* vectors = reinterpret_cast<const float4*>(in + (kFixed ? 0 : 1));
  volatile const float4* vector = vectors + i;
  out[i] = vector->x + vector->w;  // <- named
}
BUG(misaligned_vector, 1, 8, 0)
