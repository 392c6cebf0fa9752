// Launchers of the rows of dispatch and combine.

#include "cuda/launcher.h"
#include "cuda/rows.cuh"

namespace moge::cuda {
namespace {

// Launches the kernel that `choose(Row)` returns, a warp for each of `num_warps` rows.
template <class Args, class Choose>
int run(const Args& args, std::initializer_list<const void*> rows, int64_t num_warps, void* stream,
        Choose choose) {
  if (args.hidden_size < 1) return fail("hidden_size must be at least 1");
  if (num_warps == 0) return 0;
  return with_element<16, false>(args.element, args.hidden_size, rows, [&](auto row) {
    const auto kernel = choose(row);
    SIMT_LAUNCH(kernel, count_row_blocks(num_warps), kThreads, 0, as_stream(stream), args);
    return check_launch();
  });
}

}  // namespace
}  // namespace moge::cuda

extern "C" {
int moge_cuda_gather_rows(const moge::cuda::GatherRows* args, void* stream) {
  using namespace moge::cuda;
  return run(*args, {args->source, args->rows}, args->num_tokens * args->top_k, stream,
             [](auto row) {
               using Row = decltype(row);
               return &gather_rows_kernel<Row::W, typename Row::In>;
             });
}
int moge_cuda_combine_rows(const moge::cuda::CombineRows* args, void* stream) {
  using namespace moge::cuda;
  return run(*args, {args->rows, args->output}, args->num_tokens, stream, [](auto row) {
    using Row = decltype(row);
    return &combine_rows_kernel<Row::W, typename Row::In>;
  });
}
int moge_cuda_combine_weight_grad(const moge::cuda::CombineWeightGrad* args, void* stream) {
  using namespace moge::cuda;
  return run(*args, {args->grad_output, args->rows}, args->num_tokens * args->top_k, stream,
             [](auto row) {
               using Row = decltype(row);
               return &combine_weight_grad_kernel<Row::W, typename Row::In>;
             });
}
}
