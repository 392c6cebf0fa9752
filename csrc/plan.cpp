#include "plan.h"

#include <algorithm>
#include <sstream>
#include <stdexcept>

namespace moge {
namespace {

template <class... Parts>
void check(bool condition, const Parts&... parts) {
  if (condition) return;
  std::ostringstream text;
  (text << ... << parts);
  throw std::invalid_argument(text.str());
}

// sum_v taps[v] a[(j + v) mod size]: taps a whole turn apart meet the same entry and are added.
std::vector<double> fold(const double* taps, int64_t count, int64_t size) {
  std::vector<double> folded(std::min(count, size), 0.0);
  for (int64_t v = 0; v < count; ++v) folded[v % size] += taps[v];
  return folded;
}

int64_t count_groups(int64_t size, int64_t group_size, int64_t stride, bool torus) {
  const int64_t span = torus ? size : size - group_size + 1;
  return (span + stride - 1) / stride;
}

}  // namespace

GroupSettings::GroupSettings(const int64_t* values, int64_t count, int64_t h, int64_t num_experts) {
  check(count == 6, "groups must hold rows, cols, stride, torus, reduction and unit_energy, got ",
        count, " numbers");
  group_size = h, rows = values[0], cols = values[1], stride = values[2], torus = values[3] != 0;
  check(rows >= 1 && rows <= num_experts && cols >= 1 && cols <= num_experts &&
            rows * cols == num_experts,
        "rows * cols must equal num_experts=", num_experts, ", got ", rows, " and ", cols);
  check(stride >= 1, "stride must be at least 1, got ", stride);
  check(values[4] >= 0 && values[4] <= 2,
        "reduction must be 0 (token_mean), 1 (official_image) or 2 (official_language), got ",
        values[4]);
  reduction = Reduction(values[4]), unit_energy = values[5] != 0;
  check(h >= 1, "taps must have shape (group_size,) with at least one entry");
  const int64_t largest = std::min(rows, cols);
  check(torus || h <= largest, "taps of length ", h, " do not fit the ", rows, "x", cols,
        " map without torus; the largest that fits is ", largest);
  // No stride beyond the map makes a second group: 1024, the largest map, bounds every index.
  stride = std::min<int64_t>(stride, 1024);
  group_rows = count_groups(rows, h, stride, torus);
  group_cols = count_groups(cols, h, stride, torus);
}

double GroupSettings::scale(int64_t num_tokens) const {
  const double num_groups = double(group_rows) * double(group_cols);
  switch (reduction) {
    case Reduction::kOfficialImage:
      return 1.0 / (double(group_size) * double(group_size) * num_groups);
    case Reduction::kOfficialLanguage:
      return 1.0 / num_groups;
    case Reduction::kTokenMean:
      break;
  }
  return num_tokens ? 1.0 / (double(num_tokens) * num_groups) : 0.0;
}

ChoiceSettings::ChoiceSettings(const int64_t* values, int64_t count, int64_t num_experts) {
  check(count == 5,
        "choice must hold top_k, renormalize, score_function, num_groups and top_groups, got ",
        count, " numbers");
  top_k = values[0], renormalize = values[1] != 0;
  check(top_k >= 1 && top_k <= num_experts, "top_k must be from 1 to num_experts=", num_experts,
        ", got ", top_k);
  check(values[2] >= 0 && values[2] <= 2,
        "score_function must be 0 (softmax), 1 (sigmoid) or 2 (sqrtsoftplus), got ", values[2]);
  score_function = ScoreFunction(values[2]), num_groups = values[3], top_groups = values[4];
  check(num_groups >= 1 && num_groups <= num_experts && num_experts % num_groups == 0,
        "num_groups must divide num_experts=", num_experts, ", got ", num_groups);
  check(top_groups >= 1 && top_groups <= num_groups && top_k % top_groups == 0 &&
            top_k / top_groups <= num_experts / num_groups,
        "top_groups must be at most num_groups=", num_groups, ", divide top_k=", top_k,
        " and leave at most ", num_experts / num_groups, " experts of a range, got ", top_groups);
}

GroupPlan::GroupPlan(const double* taps, const GroupSettings& s)
    : row_taps(fold(taps, s.group_size, s.rows)), col_taps(fold(taps, s.group_size, s.cols)) {
  groups = {int(s.rows),       int(s.cols),       int(s.stride),        s.torus,
            int(s.group_rows), int(s.group_cols), int(row_taps.size()), int(col_taps.size()),
            row_taps.data(),   col_taps.data(),   s.unit_energy};
}

}  // namespace moge
