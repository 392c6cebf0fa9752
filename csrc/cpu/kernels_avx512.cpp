// Every kernel for AVX-512.
// Headers of the standard library come before the target pragma and kernels live in an anonymous
// namespace, so that no function compiled here can stand in for another file's.

#if defined(__x86_64__)
#if !defined(__clang__)  // gcc's own header: values that its intrinsics leave undefined on purpose
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include <cstdint>
#include <cstdlib>
#include <limits>
#include <new>
#include <type_traits>

#include "kernels.h"

#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif

namespace moge {
namespace {

#include "vector_scalar.h"
#include "vector_avx512.h"
#include "rows_scalar.h"
#include "rows_avx512.h"
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

using Set = Kernels<Avx512Float, Avx512Double>;

}  // namespace

extern const KernelSet kAvx512Kernels = {"avx512", Set::route_forward, Set::route_backward,
                                         Set::group_norm_forward, Set::group_norm_backward};

}  // namespace moge

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif  // __x86_64__
