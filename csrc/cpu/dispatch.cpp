// Chooses the instruction set, cuts a batch into chunks, and selects experts for any k.
// Compiled for the baseline: everything here may use the standard library freely.

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"

namespace moge {
namespace {

bool runs_here(const std::string& name) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (name == "avx2")
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
  if (name == "avx512") {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
#endif
  return name == "baseline";
}

std::vector<const KernelSet*> compiled_sets() {
#if defined(__x86_64__)
  return {&kAvx512Kernels, &kAvx2Kernels, &kBaselineKernels};
#else
  return {&kBaselineKernels};
#endif
}

const KernelSet& choose() {
  const char* wanted = std::getenv("MOGE_CPU_ISA");
  const bool any = wanted == nullptr || *wanted == '\0';
  std::string runnable;
  for (const KernelSet* set : compiled_sets()) {
    if (!runs_here(set->name)) continue;
    if (any || std::string(wanted) == set->name) return *set;
    runnable += (runnable.empty() ? "" : ", ") + std::string(set->name);
  }
  throw std::invalid_argument(
      "MOGE_CPU_ISA must name an instruction set that this processor runs (" + runnable +
      "), got '" + wanted + "'; unset it to take the best");
}

template <class Scalar>
void select_any_impl(const Scalar* values, int count, int k, int32_t* indices) {
  std::vector<std::pair<Scalar, int32_t>> order(count);
  for (int j = 0; j < count; ++j) {
    const Scalar v = values[j];
    order[j] = {std::isnan(v) ? -std::numeric_limits<Scalar>::infinity() : v, j};
  }
  std::partial_sort(order.begin(), order.begin() + k, order.end(), [](auto& a, auto& b) {
    return a.first > b.first || (a.first == b.first && a.second < b.second);
  });
  for (int i = 0; i < k; ++i) indices[i] = order[i].second;
}

template <class Scalar>
void select_ranges_impl(const Scalar* values, int count, int k, int num_groups, int top_groups,
                        int32_t* indices) {
  const int width = count / num_groups, best = k / top_groups;
  std::vector<int32_t> order(std::max({k, best, top_groups}));
  std::vector<Scalar> ranks(num_groups), allowed(top_groups * width);
  for (int g = 0; g < num_groups; ++g) {
    const Scalar* range = values + g * width;
    select_any_impl(range, width, best, order.data());
    for (int i = 0; i < best; ++i) {
      const Scalar v = range[order[i]];
      ranks[g] += std::isnan(v) ? -std::numeric_limits<Scalar>::infinity() : v;
    }
  }
  select_any_impl(ranks.data(), num_groups, top_groups, order.data());
  std::vector<int32_t> groups(order.begin(), order.begin() + top_groups);
  std::sort(groups.begin(), groups.end());
  for (int i = 0; i < top_groups * width; ++i) {
    allowed[i] = values[groups[i / width] * width + i % width];
  }
  select_any_impl(allowed.data(), top_groups * width, k, order.data());
  for (int i = 0; i < k; ++i) indices[i] = groups[order[i] / width] * width + order[i] % width;
}

}  // namespace

const KernelSet& kernels() {
  static const KernelSet& chosen = choose();  // a throw leaves it unset: the next call throws too
  return chosen;
}

const char* compiled_instruction_sets() {
#if defined(__x86_64__)
  return "baseline,avx2,avx512";
#else
  return "baseline";
#endif
}

int64_t chunk_tokens(int64_t num_tokens) {
  // 16 is the widest tile; 512 tokens repay the per-chunk sums, and still make 16 chunks of 8192.
  const int64_t even = (num_tokens + kMaxChunks - 1) / kMaxChunks;
  return std::max<int64_t>(512, (even + 15) / 16 * 16);
}

void select_any(const float* values, int count, int k, int32_t* indices) {
  select_any_impl(values, count, k, indices);
}
void select_any(const double* values, int count, int k, int32_t* indices) {
  select_any_impl(values, count, k, indices);
}

void select_ranges(const float* values, int count, int k, int num_groups, int top_groups,
                   int32_t* indices) {
  select_ranges_impl(values, count, k, num_groups, top_groups, indices);
}
void select_ranges(const double* values, int count, int k, int num_groups, int top_groups,
                   int32_t* indices) {
  select_ranges_impl(values, count, k, num_groups, top_groups, indices);
}

}  // namespace moge
