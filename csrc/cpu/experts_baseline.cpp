// The expert FFN kernels for any processor; the layout of experts_avx2.cpp.

#if defined(__SSE2__)
#include <immintrin.h>
#endif
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <new>

#include "experts.h"

namespace moge {
namespace {

#include "vector_scalar.h"
#include "exponential.h"
#include "tile.h"
#include "experts_math.h"
#include "experts_kernels.h"

using Set = Experts<One<float>, One<double>>;

}  // namespace

extern const ExpertKernels kBaselineExperts = {"baseline",      Set::scratch_bytes, Set::forward,
                                               Set::backward,   Set::combine,       Set::reduce,
                                               Set::reduce_bias};

}  // namespace moge
