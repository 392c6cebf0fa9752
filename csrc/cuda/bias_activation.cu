// Launchers of the experts' bias and activation.

#include "cuda/bias_activation.cuh"

#include "cuda/launcher.h"

namespace moge::cuda {
namespace {

constexpr int64_t kMostBlocks = (int64_t(1) << 31) - 1;

// 0, or the code of what is wrong with the sizes that both passes have.
template <class Args>
int check_sizes(const Args& args) {
  if (args.num_experts < 1 || args.num_experts > 1024)
    return fail("num_experts must be from 1 to 1024");
  if (args.hidden_size < 1) return fail("hidden_size must be at least 1");
  if (args.num_rows >= int64_t(1) << 31) return fail("num_rows must be below 2^31");
  if (int32_t(args.activation) < 0 || int32_t(args.activation) > 3)
    return fail("activation must be from 0 to 3");
  return 0;
}

// Launches the kernel that `choose(Row)` returns, a block for each chunk and tile of columns.
template <class Args, class Choose>
int run(const Args& args, std::initializer_list<const void*> rows, void* stream, Choose choose) {
  return with_element<16, false>(args.element, args.hidden_size, rows, [&](auto row) {
    constexpr int kWidth = kTile<decltype(row)::W>;
    const int64_t tiles = (args.hidden_size + kWidth - 1) / kWidth;
    const int64_t blocks = max_chunks(args.num_rows, args.num_experts + 1) * tiles;
    if (blocks > kMostBlocks) return fail("num_rows * hidden_size is too large for one launch");
    const auto kernel = choose(row);
    SIMT_LAUNCH(kernel, int(blocks), kThreads, 0, as_stream(stream), args, int(tiles));
    return check_launch();
  });
}

template <class In>
int sum_parts(const BiasActivationBackward& args, void* stream) {
  const int64_t tiles = (args.hidden_size + 31) / 32, blocks = args.num_experts * tiles;
  if (blocks > kMostBlocks) return fail("num_experts * hidden_size is too large for one launch");
  SIMT_LAUNCH(sum_bias_grad_kernel<In>, int(blocks), kThreads, 0, as_stream(stream), args,
              int(tiles));
  return check_launch();
}

}  // namespace
}  // namespace moge::cuda

extern "C" {
int moge_cuda_bias_activation(const moge::cuda::BiasActivation* args, void* stream) {
  using namespace moge::cuda;
  if (const int code = check_sizes(*args)) return code;
  return run(*args, {args->rows, args->bias, args->output}, stream, [](auto row) {
    using Row = decltype(row);
    return &bias_activation_kernel<Row::W, typename Row::In>;
  });
}
int moge_cuda_bias_activation_backward(const moge::cuda::BiasActivationBackward* args,
                                       void* stream) {
  using namespace moge::cuda;
  if (const int code = check_sizes(*args)) return code;
  const auto rows = {args->grad_output, args->rows, args->bias,
                     static_cast<const void*>(args->grad_rows)};
  const int code = run(*args, rows, stream, [](auto row) {
    using Row = decltype(row);
    return &bias_activation_backward_kernel<Row::W, typename Row::In>;
  });
  if (code != 0) return code;
  if (args->element == Element::kFloat16) return sum_parts<Half>(*args, stream);
  if (args->element == Element::kBFloat16) return sum_parts<BFloat16>(*args, stream);
  return sum_parts<float>(*args, stream);
}
int64_t moge_cuda_bias_activation_backward_workspace_bytes(int64_t num_rows, int32_t num_experts,
                                                           int64_t hidden_size) {
  return 4 * hidden_size * moge::cuda::max_chunks(num_rows, num_experts + 1);
}
}
