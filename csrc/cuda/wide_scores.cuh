// Scores of other functions than softmax, and rows of unit energy, by one warp (docs/method.md
// "Wider routing", "A repair: unit energy").
#pragma once

#include "cuda/launch.h"
#include "cuda/warp.cuh"

namespace moge::cuda {

constexpr int kSoftmax = 0, kSigmoid = 1;  // of Wide::function; the third is sqrt(softplus)
constexpr float kSumEpsilon = 1e-20f;      // added to a sum of scores before it divides
constexpr float kSmallest = 1.17549435e-38f;

// Blocks that run on an SM at a time, at least. A row's keys, scores and sums are in registers: 80
// a thread for 8 slots, 128 for more. None is spilled on sm_80, sm_90 and sm_100.
template <int V>
constexpr int kWideBlocks = V > 8 ? 2 : 3;

// The kernels of the wider routing serve all element types, which differ where a row is loaded and
// stored: the branch is the same for all threads, and the rest, which takes nvcc minutes, is
// compiled once. The kernels without it are one a type: as one, some of those for N > 256 took 18 %
// more instructions, or spilled.
template <class T, class Rows>
using TypedRows = std::conditional_t<std::is_const_v<Rows>, const T, T>*;

// Calls use(pointer to the element `first` of `rows`, of its type).
template <class Rows, class Use>
__device__ __forceinline__ void with_typed(Rows* rows, Element element, int64_t first, Use use) {
  if (element == Element::kFloat32) {
    use(static_cast<TypedRows<float, Rows>>(rows) + first);
  } else if (element == Element::kBFloat16) {
    use(static_cast<TypedRows<BFloat16, Rows>>(rows) + first);
  } else {
    use(static_cast<TypedRows<Half, Rows>>(rows) + first);
  }
}

struct ScorePoint {
  float value, slope;  // f(x), f'(x)
};

// Of sigmoid or sqrt(softplus). Below -40 the latter is e^(x / 2), where e^x could underflow.
__device__ __forceinline__ ScorePoint score_of(float x, int function) {
  const float t = expf(-fabsf(x)), inverse = 1.0f / (1.0f + t);
  const float sigmoid = (x > 0.0f ? 1.0f : t) * inverse;
  if (function == kSigmoid) return {sigmoid, sigmoid * (x > 0.0f ? t : 1.0f) * inverse};
  if (x < -40.0f) {
    const float root = expf(0.5f * x);
    return {root, 0.5f * root};
  }
  const float root = sqrtf(fmaxf(x, 0.0f) + log1pf(t));
  return {root, 0.5f * sigmoid / root};
}

// What the scores of a row, `slots` of this lane, are multiplied by to have a norm of 1: they are
// divided by the largest first, so that no square underflows. 0 for a row of zeros, and for one of
// subnormal scores, whose factor would be infinite: they count as zeros.
template <int V, int W>
__device__ __forceinline__ float unit_factor(const float* slice, int n, int lane) {
  float largest = 0.0f;
  read_row<V, W>(slice, n, lane, [&](int, float z) { largest = fmaxf(largest, fabsf(z)); });
  const float most = warp_max(largest), factor = 1.0f / fmaxf(most, kSmallest);
  float part = 0.0f;
  read_row<V, W>(slice, n, lane, [&](int, float z) {
    const float scaled = z * factor;
    part = fmaf(scaled, scaled, part);
  });
  const float energy = warp_sum(part);
  return most < kSmallest ? 0.0f : factor / sqrtf(energy);
}

// Gives the row in `slice` a norm of 1 where `wide` has unit energy; returns what it was multiplied
// by.
template <int V, int W>
__device__ __forceinline__ float scale_to_unit(const Wide& wide, float* slice, int n, int lane) {
  if (!wide.unit_energy) return 1.0f;
  const float factor = unit_factor<V, W>(slice, n, lane);
  update_row<V, W>(slice, n, lane, [&](int, float z) { return z * factor; });
  return factor;
}

}  // namespace moge::cuda
