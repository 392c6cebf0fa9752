// Built-in variables, barriers and warp collectives. The last parameters of each take the place of
// the call from the compiler, which is what a failed check reports.
#pragma once

#include "simt/runtime.h"

#define threadIdx (simt::thread_index())
#define blockIdx (simt::block_index())
#define blockDim (simt::block_dim())
#define gridDim (simt::grid_dim())

#define SIMT_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define SIMT_SITE (simt::Site{file, line})

inline void __syncthreads(SIMT_HERE) { simt::block_sync(0, "__syncthreads", SIMT_SITE); }
inline int __syncthreads_count(int predicate, SIMT_HERE) {
  return simt::block_sync(predicate != 0, "__syncthreads_count", SIMT_SITE);
}
inline int __syncthreads_or(int predicate, SIMT_HERE) {
  return simt::block_sync(predicate != 0, "__syncthreads_or", SIMT_SITE) != 0;
}
inline int __syncthreads_and(int predicate, SIMT_HERE) {
  return simt::block_sync(predicate == 0, "__syncthreads_and", SIMT_SITE) == 0;
}
inline void __syncwarp(unsigned mask = 0xffffffffu, SIMT_HERE) {
  simt::warp_barrier(mask, "__syncwarp", SIMT_SITE);
}

namespace simt {

// Every lane receives what lane `source` brought.
template <class T>
T shuffle(unsigned mask, T value, unsigned source, const char* op, Site site) {
  const auto read = [](const Lane* lanes, unsigned, unsigned lane) {
    return lanes[lanes[lane].source].value;
  };
  return unpack<T>(warp_sync(mask, {pack(value), source}, read, op, site));
}

// Every lane receives Join over the lanes of the mask, in the order of the lanes.
template <class Join, class T>
T reduce(unsigned mask, T value, const char* op, Site site) {
  const auto join = [](const Lane* lanes, unsigned mask, unsigned) {
    unsigned lane = unsigned(__builtin_ctz(mask));
    T total = unpack<T>(lanes[lane].value);
    for (mask &= mask - 1; mask; mask &= mask - 1) {
      lane = unsigned(__builtin_ctz(mask));
      total = Join::join(total, unpack<T>(lanes[lane].value));
    }
    return pack(total);
  };
  return unpack<T>(warp_sync(mask, {pack(value), lane_index()}, join, op, site));
}

}  // namespace simt

// Lane `lane` of a segment of `width` lanes; sources outside the segment leave the own value.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, SIMT_HERE) {
  const unsigned segment = simt::lane_index() & ~unsigned(width - 1);
  return simt::shuffle(mask, value, segment + (unsigned(source) & unsigned(width - 1)),
                       "__shfl_sync", SIMT_SITE);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, SIMT_HERE) {
  const unsigned lane = simt::lane_index(), source = lane ^ unsigned(lane_mask);
  const bool beyond = source >= (lane & ~unsigned(width - 1)) + unsigned(width);
  return simt::shuffle(mask, value, beyond ? lane : source, "__shfl_xor_sync", SIMT_SITE);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, SIMT_HERE) {
  const unsigned lane = simt::lane_index();
  const bool beyond = (lane & unsigned(width - 1)) + delta >= unsigned(width);
  return simt::shuffle(mask, value, beyond ? lane : lane + delta, "__shfl_down_sync", SIMT_SITE);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, SIMT_HERE) {
  const unsigned lane = simt::lane_index();
  const bool beyond = (lane & unsigned(width - 1)) < delta;
  return simt::shuffle(mask, value, beyond ? lane : lane - delta, "__shfl_up_sync", SIMT_SITE);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, SIMT_HERE) {
  const auto collect = [](const simt::Lane* lanes, unsigned mask, unsigned) {
    uint64_t ballot = 0;
    for (; mask; mask &= mask - 1) {
      const int lane = __builtin_ctz(mask);
      ballot |= lanes[lane].value << lane;
    }
    return ballot;
  };
  return unsigned(simt::warp_sync(mask, {predicate != 0, simt::lane_index()}, collect,
                                  "__ballot_sync", SIMT_SITE));
}
inline int __any_sync(unsigned mask, int predicate, SIMT_HERE) {
  return __ballot_sync(mask, predicate, file, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, SIMT_HERE) {
  return __ballot_sync(mask, !predicate, file, line) == 0;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value, SIMT_HERE) {
  const auto match = [](const simt::Lane* lanes, unsigned mask, unsigned lane) {
    uint64_t equal = 0;
    for (; mask; mask &= mask - 1) {
      const int other = __builtin_ctz(mask);
      equal |= uint64_t(lanes[other].value == lanes[lane].value) << other;
    }
    return equal;
  };
  return unsigned(simt::warp_sync(mask, {simt::pack(value), simt::lane_index()}, match,
                                  "__match_any_sync", SIMT_SITE));
}

#define SIMT_REDUCE(name, T, expression)                      \
  inline T name(unsigned mask, T value, SIMT_HERE) {          \
    struct Join {                                             \
      static T join(T a, T b) { return T(expression); }       \
    };                                                        \
    return simt::reduce<Join>(mask, value, #name, SIMT_SITE); \
  }
SIMT_REDUCE(__reduce_add_sync, unsigned, a + b)
SIMT_REDUCE(__reduce_add_sync, int, unsigned(a) + unsigned(b))
SIMT_REDUCE(__reduce_max_sync, unsigned, a > b ? a : b)
SIMT_REDUCE(__reduce_max_sync, int, a > b ? a : b)
SIMT_REDUCE(__reduce_min_sync, unsigned, a < b ? a : b)
SIMT_REDUCE(__reduce_min_sync, int, a < b ? a : b)
SIMT_REDUCE(__reduce_or_sync, unsigned, a | b)
SIMT_REDUCE(__reduce_and_sync, unsigned, a& b)
SIMT_REDUCE(__reduce_xor_sync, unsigned, a ^ b)
#undef SIMT_REDUCE
