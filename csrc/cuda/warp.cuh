// How one warp holds the N values of a token, and what its lanes do together.
//
// A lane owns V values (a compile-time number, N <= 32 V) in runs of W neighbours, the number that
// one load moves: slot i of a lane is expert (i / W) 32 W + lane W + i % W. With W = 1 the lanes
// take turns expert by expert; with W = 4 a warp reads 32 runs of 16 bytes. Slots grow with the
// expert, so that the lowest slot of equal values is the lowest expert of the lane. Slots at or
// beyond N exist and hold what the caller put there.
#pragma once

#include "cuda/portable.cuh"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#error "compute capability 8.0 is the least: set TORCH_CUDA_ARCH_LIST accordingly"
#endif

namespace moge::cuda {

constexpr int kThreads = 256;  // of a block
constexpr int kWarps = kThreads / 32;
constexpr unsigned kAllLanes = 0xffffffffu;

constexpr float kEpsilon = 1e-8f;  // docs/method.md: keeps the gradient finite at z = 0

__device__ __forceinline__ float infinity() { return __uint_as_float(0x7f800000u); }
__device__ __forceinline__ float not_a_number() { return __uint_as_float(0x7fffffffu); }

template <int W>
__device__ __forceinline__ constexpr int slot_offset(int slot) {
  return slot / W * 32 * W + slot % W;
}

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, distance));
  }
  return value;
}

template <class T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, distance);
  }
  return value;
}

// The sum over this lane and those before it.
__device__ __forceinline__ int warp_inclusive_sum(int value, int lane) {
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const int other = __shfl_up_sync(kAllLanes, value, distance);
    if (lane >= distance) value += other;
  }
  return value;
}

// An unsigned above 0 in the order of the floats; -0 and 0 give the same. No NaN.
__device__ __forceinline__ unsigned ordered(float value) {
  const unsigned bits = __float_as_uint(value + 0.0f);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// Values of a run of W that one access of at most 16 bytes moves.
template <class T, int W>
constexpr int kAccess = W * int(sizeof(T)) <= 16 ? W : 16 / int(sizeof(T));

// Calls visit(slot, address) for the first of every kAccess slots that lie on a row of n.
template <int V, int W, int kFlight = 8, class T, class Visit>
__device__ __forceinline__ void visit_row(T* row, int n, int lane, Visit visit) {
  T* own = row + lane * W;                // one address, and constant offsets from it
  const int rest = opaque(n - lane * W);  // else the V comparisons are kept across tokens
#pragma unroll
  for (int i = 0; i < V; i += kAccess<T, W>) {
    // With 32 slots, no more than kFlight values on their way: there are no registers for them.
    if (V > 16 && i > 0 && i % kFlight == 0) __syncwarp();
    if (slot_offset<W>(i) < rest) visit(i, own + slot_offset<W>(i));
  }
}

// Calls use(slot, value) for the lane's values of a row.
template <int V, int W, class T, class Use>
__device__ __forceinline__ void read_row(const T* row, int n, int lane, Use use) {
  visit_row<V, W>(row, n, lane, [&](int i, auto address) {
    const auto pack = load_pack<kAccess<T, W>>(address);
#pragma unroll
    for (int j = 0; j < kAccess<T, W>; ++j) use(i + j, to_float(pack.values[j]));
  });
}

// Copies the lane's values of a row into a row of shared memory, calling use(value) for each.
template <int V, int W, class T, class Use>
__device__ __forceinline__ void stage_row(const T* row, float* slice, int n, int lane, Use use) {
  constexpr int A = kAccess<T, W>, R = kAccess<float, W>;
  visit_row<V, W>(row, n, lane, [&](int i, auto address) {
    const auto pack = load_pack<A>(address);
#pragma unroll
    for (int j = 0; j < A; j += R) {
      Pack<float, R> part;
#pragma unroll
      for (int l = 0; l < R; ++l) {
        part.values[l] = to_float(pack.values[j + l]);
        use(part.values[l]);
      }
      store_pack(slice + lane * W + slot_offset<W>(i + j), part);
    }
  });
}

// The opposite: the lane's values of a row in shared memory to a row of T.
template <int V, int W, class T>
__device__ __forceinline__ void unstage_row(const float* slice, T* row, int n, int lane) {
  constexpr int A = kAccess<T, W>, R = kAccess<float, W>;
  visit_row<V, W>(row, n, lane, [&](int i, auto address) {
    Pack<T, A> pack;
#pragma unroll
    for (int j = 0; j < A; j += R) {
      const auto part = load_pack<R>(slice + lane * W + slot_offset<W>(i + j));
#pragma unroll
      for (int l = 0; l < R; ++l) pack.values[j + l] = from_float<T>(part.values[l]);
    }
    store_pack(address, pack);
  });
}

// Puts value(slot) in the lane's places of a row in shared memory.
template <int V, int W, class Value>
__device__ __forceinline__ void store_row(float* row, int n, int lane, Value value) {
  visit_row<V, W>(row, n, lane, [&](int i, auto address) {
    Pack<float, kAccess<float, W>> pack;
#pragma unroll
    for (int j = 0; j < kAccess<float, W>; ++j) pack.values[j] = value(i + j);
    store_pack(address, pack);
  });
}

// Puts update(slot, value) in the place of the lane's values of a row in shared memory.
template <int V, int W, class Update>
__device__ __forceinline__ void update_row(float* row, int n, int lane, Update update) {
  visit_row<V, W>(row, n, lane, [&](int i, auto address) {
    auto pack = load_pack<kAccess<float, W>>(address);
#pragma unroll
    for (int j = 0; j < kAccess<float, W>; ++j) pack.values[j] = update(i + j, pack.values[j]);
    store_pack(address, pack);
  });
}

// Puts join(slot, value, other) in the place of the lane's values, with a second row of float32.
template <int V, int W, class Join>
__device__ __forceinline__ void zip_row(float* row, const float* other, int n, int lane,
                                        Join join) {
  constexpr int R = kAccess<float, W>;
  visit_row<V, W>(row, n, lane, [&](int i, auto address) {
    auto pack = load_pack<R>(address);
    const auto second = load_pack<R>(other + lane * W + slot_offset<W>(i));
#pragma unroll
    for (int j = 0; j < R; ++j) {
      pack.values[j] = join(i + j, pack.values[j], second.values[j]);
    }
    store_pack(address, pack);
  });
}

}  // namespace moge::cuda
