// From the arguments of an op to what the kernels take: the groups and the factor of the loss.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "kernels.h"

namespace moge {

// Holds the taps that `groups` points to; moving keeps them where they are.
struct GroupPlan {
  GroupPlan(const double* taps, int64_t group_size, int64_t rows, int64_t cols, int64_t stride,
            bool torus);
  GroupPlan(const GroupPlan&) = delete;
  GroupPlan& operator=(const GroupPlan&) = delete;
  GroupPlan(GroupPlan&&) = default;

  // The factor that turns the sum of all group norms into the loss (docs/method.md).
  double scale(std::string_view reduction, int64_t num_tokens) const;

  int64_t group_size;
  std::vector<double> row_taps, col_taps;
  Groups groups;
};

bool known_reduction(std::string_view reduction);

}  // namespace moge
