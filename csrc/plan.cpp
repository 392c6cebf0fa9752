#include "plan.h"

#include <algorithm>

namespace moge {
namespace {

// sum_v taps[v] a[(j + v) mod size]: taps a whole turn apart meet the same entry and are added.
std::vector<double> fold(const double* taps, int64_t count, int64_t size) {
  std::vector<double> folded(std::min(count, size), 0.0);
  for (int64_t v = 0; v < count; ++v) folded[v % size] += taps[v];
  return folded;
}

int count_groups(int64_t size, int64_t group_size, int64_t stride, bool torus) {
  const int64_t span = torus ? size : size - group_size + 1;
  return int((span + stride - 1) / stride);
}

}  // namespace

GroupPlan::GroupPlan(const double* taps, int64_t h, int64_t rows, int64_t cols, int64_t stride,
                     bool torus)
    : group_size(h), row_taps(fold(taps, h, rows)), col_taps(fold(taps, h, cols)) {
  // No stride beyond the map makes a second group: 1024, the largest map, bounds every index.
  groups = {int(rows),
            int(cols),
            int(std::min<int64_t>(stride, 1024)),
            torus,
            count_groups(rows, h, stride, torus),
            count_groups(cols, h, stride, torus),
            int(row_taps.size()),
            int(col_taps.size()),
            row_taps.data(),
            col_taps.data()};
}

double GroupPlan::scale(std::string_view reduction, int64_t num_tokens) const {
  const double num_groups = double(groups.group_rows) * groups.group_cols;
  if (reduction == "official_image") return 1.0 / (double(group_size) * group_size * num_groups);
  if (reduction == "official_language") return 1.0 / num_groups;
  return num_tokens ? 1.0 / (double(num_tokens) * num_groups) : 0.0;
}

bool known_reduction(std::string_view reduction) {
  return reduction == "token_mean" || reduction == "official_image" ||
         reduction == "official_language";
}

}  // namespace moge
