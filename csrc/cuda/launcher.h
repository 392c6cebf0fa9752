// What the launchers share: the last error, launches, the filter, the choice of an instantiation.
#pragma once

#include <initializer_list>

#include "cuda/filter.cuh"
#include "cuda/launch.h"

namespace moge::cuda {

// Keeps `message` for moge_cuda_last_error; the code of every error that is not CUDA's.
int fail(const char* message);
// 0, or the code of the CUDA error that a launch left, whose text is kept.
int check_launch();

Filter make_filter(const GroupMap* groups, int num_experts);

// Launch the kernels of subwarp.cuh and return true, if they take such a call; else false.
bool launch_subwarp_forward(const RouteForward& args, void* stream);
bool launch_subwarp_backward(const RouteBackward& args, void* stream);

// The kernels for arguments with `wide`; 0, or the code of an error.
int launch_wide_forward(const RouteForward& args, void* stream);
int launch_wide_backward(const RouteBackward& args, void* stream);
int launch_wide_norm(const GroupNormForward& args, void* stream);
int launch_wide_norm_backward(const GroupNormBackward& args, void* stream);
// wide.mean = value / the number of tokens that count, at least 1.
int divide_by_counted(const Wide& wide, int64_t num_tokens, const float* value, void* stream);

inline cudaStream_t as_stream(void* stream) { return static_cast<cudaStream_t>(stream); }

// The floats of a slice, and where its margin starts; both in whole 16 bytes.
struct SliceLayout {
  int pitch, margin;
};
template <int V>
SliceLayout make_slices(const Filter& filter, int num_experts) {
  const int scores = (num_experts + 3) / 4 * 4;
  return {scores + (margin_floats<V>(filter) + 3) / 4 * 4, scores};
}

// Raises a kernel's limit of dynamic shared memory where all that it needs is above the 48 KiB that
// every kernel may have: dynamic bytes and its static ones. 0, or the code of an error.
constexpr size_t kMostStatic = 2048;  // static bytes of a kernel that has dynamic ones
template <class... Parameters>
int allow_shared(void (*kernel)(Parameters...), size_t bytes) {
  if (bytes + kMostStatic <= 48 * 1024) return 0;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes));
  return check_launch();
}

// The instantiation that reads rows of one kind: V slots a lane, W of them at a time.
template <int kSlots, int kRun, class Element>
struct Row {
  static constexpr int V = kSlots, W = kRun;
  using In = Element;
};

// Runs of 16 bytes, or what is left of them, where the size and the addresses of all rows allow
// them, else single values.
template <int V, class In, class Run>
int with_run(int64_t row_size, std::initializer_list<const void*> rows, Run run) {
  constexpr int kWhole = 16 / int(sizeof(In)), W = V < kWhole ? V : kWhole;
  bool wide = row_size % W == 0;
  for (const void* row : rows) wide &= reinterpret_cast<uintptr_t>(row) % 16 == 0;
  return wide ? run(Row<V, W, In>()) : run(Row<V, 1, In>());
}

constexpr char kWrongElement[] = "element must be kFloat32, kFloat16 or kBFloat16";

template <int V, class Run>
int with_element(Element element, int64_t row_size, std::initializer_list<const void*> rows,
                 Run run) {
  if (element == Element::kFloat32) return with_run<V, float>(row_size, rows, run);
  if (element == Element::kFloat16) return with_run<V, Half>(row_size, rows, run);
  if (element == Element::kBFloat16) return with_run<V, BFloat16>(row_size, rows, run);
  return fail(kWrongElement);
}

// Calls run(Row) with the smallest V that holds N experts, for kernels that serve every element
// type (with_typed). A run is what fits in 16 bytes of the slice: with 8 values a run, a lane's two
// float4 there lay 32 bytes apart and met another lane's in the banks, which cost 1.4 times the
// least number of accesses (gpu-check).
template <class Run>
int with_row(Element element, int n, std::initializer_list<const void*> rows, Run run) {
  if (element != Element::kFloat32 && element != Element::kFloat16 &&
      element != Element::kBFloat16) {
    return fail(kWrongElement);
  }
  if (n < 1 || n > 1024) return fail("num_experts must be from 1 to 1024");
  if (n <= 32) return with_run<1, float>(n, rows, run);
  if (n <= 64) return with_run<2, float>(n, rows, run);
  if (n <= 128) return with_run<4, float>(n, rows, run);
  if (n <= 256) return with_run<8, float>(n, rows, run);
  if (n <= 512) return with_run<16, float>(n, rows, run);
  return with_run<32, float>(n, rows, run);
}

}  // namespace moge::cuda
