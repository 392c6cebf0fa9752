// 64 KiB of dynamic shared memory without the attribute that allows more than 48.
#include "bug.h"

__global__ void shared_memory_limit(float* out, const float* in) {
  SIMT_SHARED_DYN(float, values);
  values[threadIdx.x] = in[threadIdx.x];
  out[threadIdx.x] = values[threadIdx.x];
}
extern "C" void run_shared_memory_limit(int fixed, float* out, const float* in) {
  const int bytes = fixed ? 64 << 10 : 48 << 10;
  cudaFuncSetAttribute(shared_memory_limit, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  SIMT_LAUNCH(shared_memory_limit, 1, 64, 64 << 10, nullptr, out, in);  // <- named
}
