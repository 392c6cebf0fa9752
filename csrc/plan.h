// From the arguments of an op to what the kernels take. Two of them are lists of ints, so that what
// is added to them changes neither the signature of an op nor what stands between it and a kernel:
//
//   groups   rows, cols, stride, torus, reduction, unit_energy
//            Topography.as_ints of ops/topography.py
//   choice   top_k, renormalize, score_function, num_groups, top_groups
//            Choice.as_ints of ops/choice.py
//
// What they hold is checked here, for the CPU and for CUDA: std::invalid_argument says what is
// wrong (ValueError in Python).
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"

namespace moge {

enum class Reduction : int64_t { kTokenMean, kOfficialImage, kOfficialLanguage };

// Where the groups lie on the map, and how their norms become the loss (docs/method.md).
struct GroupSettings {
  // Of `count` ints, for a filter of `group_size` taps and N experts.
  GroupSettings(const int64_t* values, int64_t count, int64_t group_size, int64_t num_experts);

  // The factor that turns the sum of all group norms into the loss; of the tokens that count.
  double scale(int64_t num_tokens) const;

  int64_t group_size, rows, cols, stride;
  bool torus;
  Reduction reduction;
  bool unit_energy;
  int64_t group_rows, group_cols;  // number of groups down and across the map
};

// How experts are chosen and weighed.
struct ChoiceSettings {
  ChoiceSettings(const int64_t* values, int64_t count, int64_t num_experts);

  int64_t top_k;
  bool renormalize;
  ScoreFunction score_function;
  int64_t num_groups, top_groups;
};

// The groups as the CPU kernels take them. Holds the taps that `groups` points to; moving keeps
// them where they are.
struct GroupPlan {
  GroupPlan(const double* taps, const GroupSettings& settings);
  GroupPlan(const GroupPlan&) = delete;
  GroupPlan& operator=(const GroupPlan&) = delete;
  GroupPlan(GroupPlan&&) = default;

  std::vector<double> row_taps, col_taps;
  Groups groups;
};

}  // namespace moge
