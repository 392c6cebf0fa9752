// A CUDA runtime without a GPU: linked with the launchers (nvcc -cudart none) in place of
// libcudart, it hands every kernel launch to a callback. The cost report (tools/gpu_check)
// thereby sees the kernels, grids, blocks, shared memory and arguments that the launchers really
// choose, and interprets their PTX. No torch, no device; a runtime function that is missing here
// fails when the library is loaded, by name.
#include <cuda_runtime_api.h>

#include <string>
#include <unordered_map>

namespace {

struct Call {
  dim3 grid, block;
  size_t shared_bytes;
  cudaStream_t stream;
};

// Returns 0, or a CUDA error code that the launcher then sees. raised_bytes: what the launcher has
// raised the kernel's limit of dynamic shared memory to, or -1.
using OnLaunch = int (*)(const char* kernel, const unsigned* grid, const unsigned* block,
                         size_t shared_bytes, int raised_bytes, void** arguments);

OnLaunch on_launch = nullptr;
cudaError_t last_error = cudaSuccess;
Call pending;

// Filled by static constructors of the launchers, hence not a plain global.
std::unordered_map<const void*, std::string>& names() {
  static std::unordered_map<const void*, std::string> table;
  return table;
}

std::unordered_map<const void*, int> raised;

}  // namespace

extern "C" {

void record_launches(OnLaunch callback) { on_launch = callback; }

// The half of the runtime that nvcc's generated code calls; declared in no public header.
void** CUDARTAPI __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
void CUDARTAPI __cudaRegisterFatBinaryEnd(void**) {}
void CUDARTAPI __cudaUnregisterFatBinary(void**) {}
void CUDARTAPI __cudaRegisterFunction(void**, const char* stub, char*, const char* name, int,
                                      uint3*, uint3*, dim3*, dim3*, int*) {
  names()[stub] = name;
}
unsigned CUDARTAPI __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_bytes,
                                               cudaStream_t stream) {
  pending = {grid, block, shared_bytes, stream};
  return 0;
}
cudaError_t CUDARTAPI __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared_bytes,
                                                 void* stream) {
  *grid = pending.grid;
  *block = pending.block;
  *shared_bytes = pending.shared_bytes;
  *static_cast<cudaStream_t*>(stream) = pending.stream;
  return cudaSuccess;
}
cudaError_t CUDARTAPI __cudaGetKernel(cudaKernel_t* kernel, const void* stub) {
  *kernel = static_cast<cudaKernel_t>(const_cast<void*>(stub));
  return cudaSuccess;
}
cudaError_t CUDARTAPI __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block,
                                         void** arguments, size_t shared_bytes, cudaStream_t) {
  const unsigned blocks[] = {grid.x, grid.y, grid.z}, threads[] = {block.x, block.y, block.z};
  const auto name = names().find(kernel);
  const auto limit = raised.find(kernel);
  const int raised_bytes = limit == raised.end() ? -1 : limit->second;
  last_error = on_launch == nullptr || name == names().end()
                   ? cudaErrorInvalidDeviceFunction
                   : static_cast<cudaError_t>(on_launch(name->second.c_str(), blocks, threads,
                                                        shared_bytes, raised_bytes, arguments));
  return last_error;
}

// The public half that launchers use.
cudaError_t CUDARTAPI cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int bytes) {
  raised[kernel] = bytes;
  return cudaSuccess;
}
cudaError_t CUDARTAPI cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
const char* CUDARTAPI cudaGetErrorString(cudaError_t) { return "an error of the recorder"; }

}  // extern "C"
