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

Filter make_filter(const GroupMap* groups, int num_experts) {
  Filter filter{};
  if (groups == nullptr) return filter;
  filter.taps = groups->taps;
  filter.group_size = groups->group_size;
  filter.rows = groups->rows;
  filter.cols = groups->cols;
  filter.num_experts = num_experts;
  filter.stride = groups->stride;
  filter.group_rows = groups->group_rows;
  filter.group_cols = groups->group_cols;
  filter.num_row_taps = groups->group_size < groups->rows ? groups->group_size : groups->rows;
  filter.num_col_taps = groups->group_size < groups->cols ? groups->group_size : groups->cols;
  filter.reciprocal = ((1u << 21) + unsigned(groups->cols) - 1) / unsigned(groups->cols);
  filter.torus = groups->torus != 0;
  return filter;
}

}  // namespace moge::cuda

extern "C" const char* moge_cuda_last_error() { return moge::cuda::last_error; }
