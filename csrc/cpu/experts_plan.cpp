// Sorts the choices by expert and cuts the sorted rows into tasks.
// Compiled for the baseline: everything here may use the standard library freely.

#include <algorithm>
#include <string_view>

#include "experts.h"

namespace moge {
namespace {

void longest_first(std::vector<ExpertTask>& tasks) {
  std::stable_sort(tasks.begin(), tasks.end(),
                   [](const ExpertTask& a, const ExpertTask& b) { return a.rows > b.rows; });
}

// `count` rows cut into `parts` runs of nearly equal length, never a short last one.
int64_t cut(int64_t count, int64_t parts, int64_t i) { return count * i / parts; }

// The nearest number of blocks, so that none exceeds 1.5 block (and a rounding).
int64_t num_blocks(int64_t rows, int64_t block) {
  return std::max<int64_t>(1, (rows + block / 2) / block);
}

}  // namespace

int64_t sort_choices(const int64_t* experts, int64_t count, int num_experts, int32_t* slots,
                     int64_t* offsets) {
  std::vector<int64_t> next(num_experts + 1, 0);  // shifted by one: choices of -1 fall into next[0]
  for (int64_t slot = 0; slot < count; ++slot) {
    if (experts[slot] < -1 || experts[slot] >= num_experts) return slot;
    ++next[experts[slot] + 1];
  }
  offsets[0] = 0;
  for (int e = 0; e < num_experts; ++e) {
    offsets[e + 1] = offsets[e] + next[e + 1];
    next[e + 1] = offsets[e];
  }
  for (int64_t slot = 0; slot < count; ++slot) {
    if (experts[slot] >= 0) slots[next[experts[slot] + 1]++] = int32_t(slot);
  }
  return -1;
}

int64_t block_rows(int64_t hidden, int64_t ffn) {
  // 384 Ki scalars of gathered and intermediate rows: 1.5 MiB of floats, near a core's L2.
  return std::clamp<int64_t>(384 * 1024 / (2 * (hidden + ffn)), 128, 512);
}

int64_t max_block_rows(int64_t hidden, int64_t ffn, const int64_t* offsets, int num_experts) {
  int64_t longest = 1;
  for (int e = 0; e < num_experts; ++e) longest = std::max(longest, offsets[e + 1] - offsets[e]);
  return std::min(longest, block_rows(hidden, ffn) * 3 / 2 + 1);
}

std::vector<ExpertTask> forward_tasks(const int64_t* offsets, int num_experts, int64_t block) {
  std::vector<ExpertTask> tasks;
  for (int e = 0; e < num_experts; ++e) {
    const int64_t begin = offsets[e], rows = offsets[e + 1] - begin;
    if (rows == 0) continue;
    const int64_t parts = num_blocks(rows, block);
    for (int64_t i = 0; i < parts; ++i) {
      const int64_t first = cut(rows, parts, i);
      tasks.push_back({e, begin + first, cut(rows, parts, i + 1) - first, 0});
    }
  }
  longest_first(tasks);
  return tasks;
}

std::vector<ExpertTask> backward_tasks(const int64_t* offsets, int num_experts, int64_t block) {
  constexpr int64_t kSegments = 8;  // at most this many partial gradients beyond one an expert
  const int64_t longest = std::max(4 * block, (offsets[num_experts] + kSegments - 1) / kSegments);
  std::vector<ExpertTask> tasks;
  for (int e = 0; e < num_experts; ++e) {
    const int64_t begin = offsets[e], rows = offsets[e + 1] - begin;
    const int64_t parts = std::max<int64_t>(1, (rows + longest - 1) / longest);
    for (int64_t i = 0; i < parts; ++i) {
      const int64_t first = cut(rows, parts, i);
      const int64_t segment = int64_t(tasks.size());
      tasks.push_back({e, begin + first, cut(rows, parts, i + 1) - first, segment});
    }
  }
  longest_first(tasks);
  return tasks;
}

const ExpertKernels& expert_kernels() {
#if defined(__x86_64__)
  const std::string_view name = kernels().name;
  if (name == kAvx512Experts.name) return kAvx512Experts;
  if (name == kAvx2Experts.name) return kAvx2Experts;
#endif
  return kBaselineExperts;
}

}  // namespace moge
