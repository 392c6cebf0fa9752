// The expert FFN kernels for AVX2 with FMA: the kernels of experts_kernels.h on its registers.
// Headers of the standard library come before the target pragma and kernels live in an anonymous
// namespace, so that no function compiled here can stand in for another file's.

#if defined(__x86_64__)
#include <immintrin.h>

#include <cstdint>
#include <cstdlib>
#include <limits>
#include <new>

#include "experts.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

namespace moge {
namespace {

#include "vector_scalar.h"
#include "vector_avx2.h"
#include "exponential.h"
#include "tile.h"
#include "experts_math.h"
#include "experts_kernels.h"

using Set = Experts<Avx2Float, Avx2Double>;

}  // namespace

extern const ExpertKernels kAvx2Experts = {"avx2",          Set::scratch_bytes, Set::forward,
                                           Set::backward,   Set::combine,       Set::reduce,
                                           Set::reduce_bias};

}  // namespace moge

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif  // __x86_64__
