// What the binding files share: checks, allocation, the stream. Only they know torch, and they know
// it by its stable ABI (torch/csrc/stable), so that one binary serves every torch from 2.10 on.
//
// The stable ABI has standard exceptions only. std::invalid_argument reaches Python as ValueError;
// csrc/autograd.h makes TypeError of std::domain_error (ValueError in inference mode).
//
// MOGE_EMULATED binds the same launchers, compiled against tools/simt, to CPU tensors: for tests.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "launch.h"

#ifdef MOGE_EMULATED
#define MOGE_DISPATCH_KEY CPU
#else
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#define MOGE_DISPATCH_KEY CUDA
#endif

namespace moge::cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Shape = std::vector<int64_t>;

template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream stream;
  (stream << ... << parts);
  return stream.str();
}

template <class Sizes>
std::string shape_text(const Sizes& sizes) {
  std::string result = "[";
  for (const int64_t size : sizes) result += (result.size() > 1 ? ", " : "") + text(size);
  return result + "]";
}

template <class... Parts>
void check_value(bool condition, const Parts&... parts) {
  if (!condition) throw std::invalid_argument(text(parts...));
}

template <class... Parts>
void check_type(bool condition, const Parts&... parts) {
  if (!condition) throw std::domain_error(text(parts...));
}

inline void check_device(const Tensor& tensor, const char* name) {
#ifdef MOGE_EMULATED
  check_value(tensor.is_cpu(), name, " must be on the CPU");
#else
  check_value(tensor.is_cuda(), name, " must be on a CUDA device");
#endif
}

inline void check_same_device(const Tensor& tensor, const Tensor& other, const char* name) {
  check_device(tensor, name);
  check_value(tensor.get_device_index() == other.get_device_index(), name, " must be on device ",
              other.get_device_index(), " like the first tensor, got ", tensor.get_device_index());
}

inline Element element_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Element::kFloat32;
    case ScalarType::Half:
      return Element::kFloat16;
    case ScalarType::BFloat16:
      return Element::kBFloat16;
    default:
      check_type(false, name, " must be float32, float16 or bfloat16, got ", tensor.scalar_type());
      return Element::kFloat32;
  }
}

inline void check_matrix(const Tensor& tensor, const char* name) {
  check_device(tensor, name);
  check_value(tensor.dim() == 2, name, " must have shape (num_tokens, num_experts), got ",
              shape_text(tensor.sizes()));
  element_of(tensor, name);
  check_value(tensor.size(1) >= 1 && tensor.size(1) <= 1024, name,
              " must have 1 to 1024 experts in its last dimension, got shape ",
              shape_text(tensor.sizes()));
}

// Not through the dispatcher, by name, for what is contiguous already.
inline Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline void check_shape(const Tensor& tensor, const Tensor& like, const Shape& shape,
                        const char* name) {
  check_same_device(tensor, like, name);
  const auto sizes = tensor.sizes();
  check_value(Shape(sizes.begin(), sizes.end()) == shape, name, " must have shape ",
              shape_text(shape), ", got ", shape_text(sizes));
}

// A contiguous `tensor` of this shape and dtype on the device of `like`.
inline Tensor checked(const Tensor& tensor, const Tensor& like, const Shape& shape,
                      ScalarType dtype, const char* name) {
  check_shape(tensor, like, shape, name);
  check_type(tensor.scalar_type() == dtype, name, " must be ", dtype, ", got ",
             tensor.scalar_type());
  return as_contiguous(tensor);
}

// Raises where the kernels' loads of `bytes` would not be aligned, which ends the CUDA context.
inline void check_aligned(const Tensor& tensor, size_t bytes, const char* name) {
  check_value(reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % bytes == 0, name,
              " must lie at a multiple of ", bytes, " bytes: pass a copy");
}

inline OptionalTensor checked(const OptionalTensor& tensor, const Tensor& like, const Shape& shape,
                              ScalarType dtype, const char* name) {
  return tensor ? OptionalTensor(checked(*tensor, like, shape, dtype, name)) : std::nullopt;
}

inline Tensor empty(const Tensor& like, const Shape& shape, ScalarType dtype) {
  return torch::stable::new_empty(like, shape, dtype);
}

template <class T>
const T* pointer(const OptionalTensor& tensor) {
  return tensor ? static_cast<const T*>(tensor->const_data_ptr()) : nullptr;
}

template <class T>
T* output(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// Scratch memory, aligned to 256 bytes whatever the allocator does.
struct Workspace {
  Workspace(const Tensor& like, int64_t bytes)
      : memory(empty(like, {bytes + 255}, ScalarType::Byte)) {
    const auto address = reinterpret_cast<uintptr_t>(memory.mutable_data_ptr());
    data = reinterpret_cast<void*>((address + 255) / 256 * 256);
  }
  Tensor memory;
  void* data;
};

// Makes the device of a tensor current, and names its current stream.
#ifdef MOGE_EMULATED
struct Device {
  explicit Device(const Tensor&) {}
  void* stream() const { return nullptr; }
  bool capturing() const { return false; }
};
#else
// The current stream of a device, from torch's C interface (the C++ one has it from 2.13 on). It is
// libtorch_cuda's, which a CPU build of torch has not: what is loaded is asked, nothing linked.
inline void* current_stream(int32_t device_index) {
  using Function = int32_t (*)(int32_t device_index, void** stream);  // returns 0, or an error
  static const auto function = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return library ? Function(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  void* stream = nullptr;
  if (function == nullptr || function(device_index, &stream) != 0)
    throw std::runtime_error("torch did not tell the current CUDA stream: is this its CUDA build?");
  return stream;
}

class Device {
 public:
  explicit Device(const Tensor& tensor)
      : guard_(tensor.get_device_index()), stream_(current_stream(tensor.get_device_index())) {}
  void* stream() const { return stream_; }
  bool capturing() const {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    if (cudaStreamIsCapturing(static_cast<cudaStream_t>(stream()), &status) != cudaSuccess) {
      cudaGetLastError();  // not the next launch's: on the legacy stream while another captures
      return true;
    }
    return status != cudaStreamCaptureStatusNone;
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_;
};
#endif

template <class Arguments>
void launch(int (*launcher)(const Arguments*, void*), const Arguments& args, const Device& device) {
  const int code = launcher(&args, device.stream());
  if (code != 0)
    throw std::runtime_error(
        text("a moge CUDA kernel was not launched: ", moge_cuda_last_error(), " (", code, ")"));
}

}  // namespace moge::cuda
