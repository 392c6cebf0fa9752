// The launchers' shared parts that are not templates.

#include "cuda/launcher.h"

#include <cstdio>

namespace moge::cuda {
namespace {

thread_local char last_error[512] = "";

}  // namespace

int fail(const char* message) {
  std::snprintf(last_error, sizeof last_error, "%s", message);
  return -1;
}

int check_launch() {
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return 0;
  fail(cudaGetErrorString(error));
  return int(error);
}

Filter make_filter(const Groups* groups, int num_experts) {
  Filter filter{};
  if (groups == nullptr) return filter;
  filter.rows = groups->rows;
  filter.cols = groups->cols;
  filter.num_experts = num_experts;
  filter.stride = groups->stride;
  filter.group_rows = groups->group_rows;
  filter.group_cols = groups->group_cols;
  filter.num_row_taps = groups->num_row_taps;
  filter.num_col_taps = groups->num_col_taps;
  filter.reciprocal = ((1u << 21) + unsigned(groups->cols) - 1) / unsigned(groups->cols);
  filter.torus = groups->torus;
  for (int t = 0; t < groups->num_col_taps; ++t) filter.taps[t] = float(groups->col_taps[t]);
  for (int t = 0; t < groups->num_row_taps; ++t) {
    filter.taps[groups->num_col_taps + t] = float(groups->row_taps[t]);
  }
  return filter;
}

}  // namespace moge::cuda

extern "C" const char* moge_cuda_last_error() { return moge::cuda::last_error; }
