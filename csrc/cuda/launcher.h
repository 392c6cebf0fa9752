// What the launchers share: the last error, launches, the filter, the choice of an instantiation.
#pragma once

#include <initializer_list>
#include <type_traits>

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

// The most values of a run that passes through a slice of shared memory. With 8, of 16 bits, a
// lane's two float4 in the slice lie 32 bytes apart and meet another lane's in the banks, which
// cost 1.4 times the least number of accesses (gpu-check). 32 slots leave registers for 2.
template <int V, class In>
constexpr int kMostStaged = V > 16 && sizeof(In) < 4 ? 2 : 4;

// Runs of 16 bytes, or what is left of them, where the size and the addresses of all rows allow
// them, else single values.
template <int V, bool kStaged, class In, class Run>
int with_run(int64_t row_size, std::initializer_list<const void*> rows, Run run) {
  constexpr int kWhole = 16 / int(sizeof(In)), kFits = V < kWhole ? V : kWhole;
  constexpr int W = kStaged && kFits > kMostStaged<V, In> ? kMostStaged<V, In> : kFits;
  bool wide = row_size % W == 0;
  for (const void* row : rows) wide &= reinterpret_cast<uintptr_t>(row) % 16 == 0;
  return wide ? run(Row<V, W, In>()) : run(Row<V, 1, In>());
}

constexpr char kWrongElement[] = "element must be kFloat32, kFloat16 or kBFloat16";

template <int V, bool kStaged, class Run>
int with_element(Element element, int64_t row_size, std::initializer_list<const void*> rows,
                 Run run) {
  if (element == Element::kFloat32) return with_run<V, kStaged, float>(row_size, rows, run);
  if (element == Element::kFloat16) return with_run<V, kStaged, Half>(row_size, rows, run);
  if (element == Element::kBFloat16) return with_run<V, kStaged, BFloat16>(row_size, rows, run);
  return fail(kWrongElement);
}

// Calls run(V), a type, with the smallest V that holds N experts.
template <class Run>
int with_slots(int n, Run run) {
  if (n < 1 || n > 1024) return fail("num_experts must be from 1 to 1024");
  if (n <= 32) return run(std::integral_constant<int, 1>());
  if (n <= 64) return run(std::integral_constant<int, 2>());
  if (n <= 128) return run(std::integral_constant<int, 4>());
  if (n <= 256) return run(std::integral_constant<int, 8>());
  if (n <= 512) return run(std::integral_constant<int, 16>());
  return run(std::integral_constant<int, 32>());
}

// Calls run(Row) for the kernels that serve one element type each.
template <class Run>
int with_row(Element element, int n, std::initializer_list<const void*> rows, Run run) {
  return with_slots(n, [&](auto slots) {
    return with_element<decltype(slots)::value, true>(element, n, rows, run);
  });
}

// The same for kernels that serve them all (with_typed): runs of the length that float32 has.
template <class Run>
int with_any_row(Element element, int n, std::initializer_list<const void*> rows, Run run) {
  if (element != Element::kFloat32 && element != Element::kFloat16 &&
      element != Element::kBFloat16) {
    return fail(kWrongElement);
  }
  return with_slots(
      n, [&](auto slots) { return with_run<decltype(slots)::value, true, float>(n, rows, run); });
}

}  // namespace moge::cuda
