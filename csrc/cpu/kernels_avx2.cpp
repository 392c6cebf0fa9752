// Every kernel for AVX2 with FMA.
// Headers of the standard library come before the target pragma and kernels live in an anonymous
// namespace, so that no function compiled here can stand in for another file's.

#if defined(__x86_64__)
#include <immintrin.h>

#include <cstdint>
#include <cstdlib>
#include <limits>
#include <new>
#include <type_traits>

#include "kernels.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

namespace moge {
namespace {

#include "vector_scalar.h"
#include "vector_avx2.h"
#include "rows_scalar.h"
#include "rows_avx2.h"
#include "exponential.h"
#include "tile.h"
#include "stencil.h"
#include "row_map.h"
#include "norms.h"
#include "scores.h"
#include "select.h"
#include "forward_tile.h"
#include "route_forward.h"
#include "route_wide.h"
#include "route_chunks.h"
#include "route_backward.h"
#include "row_backward.h"
#include "route_backward_scores.h"
#include "group_norm.h"
#include "kernel_set.h"

using Set = Kernels<Avx2Float, Avx2Double>;

}  // namespace

extern const KernelSet kAvx2Kernels = {"avx2", Set::route_forward, Set::route_backward,
                                       Set::group_norm_forward, Set::group_norm_backward};

}  // namespace moge

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif  // __x86_64__
