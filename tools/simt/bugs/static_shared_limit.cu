// 47.5 KiB of dynamic shared memory, which alone would do, beside 1 KiB of static.
#include "bug.h"

__global__ void static_shared_limit(float* out, const float* in) {
  SIMT_SHARED_DYN(float, values);
  SIMT_SHARED(sums, float[256]);
  const int i = threadIdx.x;
  values[i] = in[i];
  sums[i] = values[i];
  out[i] = sums[i];
}
extern "C" void run_static_shared_limit(int fixed, float* out, const float* in) {
  const int bytes = 47 * 1024 + 512 - (fixed ? 1024 : 0);
  SIMT_LAUNCH(static_shared_limit, 1, 64, bytes, nullptr, out, in);  // <- named
}
