// The expert FFN kernels for AVX-512: the kernels of experts_kernels.h on its registers.
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

#include "experts.h"

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
#include "exponential.h"
#include "tile.h"
#include "experts_math.h"
#include "experts_kernels.h"

using Set = Experts<Avx512Float, Avx512Double>;

}  // namespace

extern const ExpertKernels kAvx512Experts = {"avx512",        Set::scratch_bytes, Set::forward,
                                             Set::backward,   Set::combine,       Set::reduce,
                                             Set::reduce_bias};

}  // namespace moge

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif  // __x86_64__
