// Launcher of the order of dispatch.

#include "cuda/launcher.h"
#include "cuda/sort_choices.cuh"

extern "C" {
int moge_cuda_sort_choices(const moge::cuda::SortChoices* args, void* stream) {
  using namespace moge::cuda;
  const int n = args->num_experts;
  const int64_t num_choices = args->num_tokens * args->top_k;
  if (n < 1 || n > 1024) return fail("num_experts must be from 1 to 1024");
  if (num_choices >= int64_t(1) << 31) return fail("num_tokens * top_k must be below 2^31");
  const SortParts parts = make_sort_parts(args->workspace, num_choices, n);
  const int blocks = parts.num_runs / kWarps;
  const size_t row_bytes = 4 * size_t(n);
  SIMT_LAUNCH(count_choices_kernel, blocks, kThreads, kWarps * row_bytes, as_stream(stream), *args,
              parts);
  if (const int code = check_launch()) return code;
  SIMT_LAUNCH(prefix_choices_kernel, n / kWarps + 1, kThreads, 0, as_stream(stream), *args, parts);
  if (const int code = check_launch()) return code;
  SIMT_LAUNCH(place_choices_kernel, blocks, kThreads, (kWarps + 1) * row_bytes + 4,
              as_stream(stream), *args, parts);
  return check_launch();
}
int64_t moge_cuda_sort_choices_workspace_bytes(int64_t num_choices, int32_t num_experts) {
  return moge::cuda::sort_parts_bytes(num_choices, num_experts);
}
}
