// Every kernel for any processor: one token at a time, with the library's fma where there is no
// instruction. Headers of the standard library come before the target pragma and kernels live in an
// anonymous namespace, so that no function compiled here can stand in for another file's.

#if defined(__SSE2__)
#include <immintrin.h>
#endif
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <new>
#include <type_traits>

#include "kernels.h"

namespace moge {
namespace {

#include "vector_scalar.h"
#define MOGE_UNROLL
#include "rows_scalar.h"
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

using Set = Kernels<One<float>, One<double>>;

}  // namespace

extern const KernelSet kBaselineKernels = {"baseline", Set::route_forward, Set::route_backward,
                                           Set::group_norm_forward, Set::group_norm_backward};

}  // namespace moge
