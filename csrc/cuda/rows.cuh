// The rows of dispatch and combine, and their gradients: each is the other's adjoint.
//
//   gather    rows[p] = scale source[slots[p] / k]          a warp a row
//   combine   y[t] = sum_i weights[t, i] rows[positions[t, i]]          a warp a token
//   weight    dL/dweights[t, i] = sum_c dL/dy[t, c] rows[positions[t, i], c]   a warp a choice
//
// The lanes of a warp stand side by side on a row, W values each, 16 bytes where d and the
// addresses allow it. Nothing is added with atomics: a token gathers its own rows, in the order of
// its choices, in float32. What limits all three is memory traffic.
#pragma once

#include "cuda/launch.h"
#include "cuda/warp.cuh"

namespace moge::cuda {

// A warp a row and 8 rows a block, then strides: enough blocks to fill any device.
constexpr int64_t kMaxRowBlocks = 1 << 16;
inline int count_row_blocks(int64_t rows) {
  const int64_t blocks = (rows + kWarps - 1) / kWarps;
  return int(blocks < kMaxRowBlocks ? blocks : kMaxRowBlocks);
}

// Calls visit(row, lane) for the rows of this warp.
template <class Visit>
__device__ __forceinline__ void visit_rows(int64_t num_rows, Visit visit) {
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  for (int64_t row = int64_t(blockIdx.x) * kWarps + warp; row < num_rows;
       row += int64_t(gridDim.x) * kWarps) {
    visit(row, lane);
  }
}

template <int W, class In>
__global__ void __launch_bounds__(kThreads) gather_rows_kernel(const GatherRows args) {
  const int64_t d = args.hidden_size;
  visit_rows(args.num_tokens * args.top_k, [&](int64_t row, int lane) {
    const int slot = args.slots[row];
    const int token = slot < 0 ? 0 : slot / args.top_k;
    const float weight = args.weights == nullptr || slot < 0 ? 1.0f : args.weights[slot];
    const In* from = static_cast<const In*>(args.source) + token * d;
    In* to = static_cast<In*>(args.rows) + row * d;
    for (int64_t c = lane * W; c < d; c += 32 * W) {
      Pack<In, W> pack = {};
      if (slot >= 0) pack = load_pack<W>(from + c);
      if (args.weights != nullptr) {
#pragma unroll
        for (int i = 0; i < W; ++i) {
          pack.values[i] = from_float<In>(weight * to_float(pack.values[i]));
        }
      }
      store_pack(to + c, pack);
    }
  });
}

template <int W, class In>
__global__ void __launch_bounds__(kThreads) combine_rows_kernel(const CombineRows args) {
  const int64_t d = args.hidden_size;
  const int k = args.top_k;
  visit_rows(args.num_tokens, [&](int64_t token, int lane) {
    const int32_t* positions = args.positions + token * k;
    for (int64_t c = lane * W; c < d; c += 32 * W) {
      float sums[W] = {};
      for (int i = 0; i < k; ++i) {
        const int64_t position = positions[i];
        if (position < 0) continue;
        const float weight = args.weights == nullptr ? 1.0f : args.weights[token * k + i];
        const auto pack = load_pack<W>(static_cast<const In*>(args.rows) + position * d + c);
#pragma unroll
        for (int j = 0; j < W; ++j) sums[j] = fmaf(weight, to_float(pack.values[j]), sums[j]);
      }
      Pack<In, W> pack;
#pragma unroll
      for (int j = 0; j < W; ++j) pack.values[j] = from_float<In>(sums[j]);
      store_pack(static_cast<In*>(args.output) + token * d + c, pack);
    }
  });
}

template <int W, class In>
__global__ void __launch_bounds__(kThreads)
    combine_weight_grad_kernel(const CombineWeightGrad args) {
  const int64_t d = args.hidden_size;
  visit_rows(args.num_tokens * args.top_k, [&](int64_t choice, int lane) {
    const int64_t position = args.positions[choice];
    float sum = 0.0f;
    if (position >= 0) {
      const In* grad = static_cast<const In*>(args.grad_output) + choice / args.top_k * d;
      const In* row = static_cast<const In*>(args.rows) + position * d;
      for (int64_t c = lane * W; c < d; c += 32 * W) {
        const auto a = load_pack<W>(grad + c);
        const auto b = load_pack<W>(row + c);
#pragma unroll
        for (int i = 0; i < W; ++i) sum = fmaf(to_float(a.values[i]), to_float(b.values[i]), sum);
      }
    }
    sum = warp_sum(sum);
    if (lane == 0) args.grad_weights[choice] = sum;
  });
}

}  // namespace moge::cuda
