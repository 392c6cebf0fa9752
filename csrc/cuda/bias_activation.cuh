// Bias and activation of the experts' rows after a product, and the gradients of both.
//
//   forward     output[p] = act(rows[p] + bias[e])                 e the expert of row p
//   backward    grad_rows[p] = act'(rows[p] + bias[e]) grad_output[p]
//   its sum     grad_bias[e] = sum_p grad_rows[p] over the rows of e
//
// The rows stand by expert. Every expert's are cut into chunks of 128, and so are those of dropped
// choices, which come last: a block has a chunk and a tile of columns, so the bias stays in
// registers, and finds its chunk from the offsets, whose values the host never needs to know. A
// warp has every eighth row, the lanes side by side on it. A block leaves its sums in the
// workspace, and a second kernel adds the chunks of an expert in order: no atomics, the same bits
// on every run. All is added in float32. What limits it is memory traffic.
#pragma once

#include "cuda/launch.h"
#include "cuda/warp.cuh"

namespace moge::cuda {

constexpr int kChunkRows = 128;

inline int64_t max_chunks(int64_t num_rows, int num_segments) {
  return num_rows / kChunkRows + num_segments;
}
__device__ __forceinline__ int count_chunks(int64_t rows) {
  return int((rows + kChunkRows - 1) / kChunkRows);
}

template <Activation>
struct Function;
template <>
struct Function<Activation::kNone> {
  static constexpr bool kLinear = true;
  __device__ static float value(float x) { return x; }
  __device__ static float slope(float) { return 1.0f; }
};
template <>
struct Function<Activation::kGelu> {
  static constexpr bool kLinear = false;
  __device__ static float share(float x) { return 0.5f * (1.0f + erff(x * 0.70710678f)); }
  __device__ static float value(float x) { return x * share(x); }
  __device__ static float slope(float x) {
    return share(x) + x * (0.39894228f * expf(-0.5f * x * x));
  }
};
template <>
struct Function<Activation::kRelu> {
  static constexpr bool kLinear = false;
  __device__ static float value(float x) { return x <= 0.0f ? 0.0f : x; }  // NaN stays NaN
  __device__ static float slope(float x) { return x <= 0.0f ? 0.0f : 1.0f; }
};
template <>
struct Function<Activation::kSilu> {
  static constexpr bool kLinear = false;
  __device__ static float share(float x) { return 1.0f / (1.0f + expf(-x)); }
  __device__ static float value(float x) { return x / (1.0f + expf(-x)); }
  __device__ static float slope(float x) {
    const float s = share(x);
    return s * (1.0f + x * (1.0f - s));
  }
};

// Calls run(Function): the choice is made once a block, outside its loop over rows.
template <class Run>
__device__ __forceinline__ void with_activation(Activation activation, Run run) {
  if (activation == Activation::kGelu) return run(Function<Activation::kGelu>());
  if (activation == Activation::kRelu) return run(Function<Activation::kRelu>());
  if (activation == Activation::kSilu) return run(Function<Activation::kSilu>());
  run(Function<Activation::kNone>());
}

// Rows begin to end of expert `segment`; N for dropped choices, -1 where there is no such chunk.
struct Chunk {
  int64_t segment, begin, end;
};

// Chunk number `index` of the segments, by the whole block; ends in a barrier.
__device__ __forceinline__ Chunk find_chunk(const int64_t* offsets, int n, int64_t num_rows,
                                            int index) {
  constexpr int kShare = 1024 / kThreads + 1;
  SIMT_SHARED(warp_sums, int[kWarps]);
  SIMT_SHARED(found, Chunk[1]);
  const int thread = int(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const auto start_of = [&](int segment) { return segment > n ? num_rows : offsets[segment]; };
  int counts[kShare], sum = 0;
#pragma unroll
  for (int i = 0; i < kShare; ++i) {
    const int segment = thread * kShare + i;
    counts[i] = segment <= n ? count_chunks(start_of(segment + 1) - start_of(segment)) : 0;
    sum += counts[i];
  }
  const int through = warp_inclusive_sum(sum, lane);
  if (lane == 31) warp_sums[warp] = through;
  if (thread == 0) found[0] = {-1, 0, 0};
  __syncthreads();
  int first = through - sum;
  for (int before = 0; before < warp; ++before) first += warp_sums[before];
#pragma unroll
  for (int i = 0; i < kShare; ++i) {
    if (index >= first && index < first + counts[i]) {
      const int segment = thread * kShare + i;
      const int64_t begin = start_of(segment) + int64_t(index - first) * kChunkRows;
      const int64_t end = start_of(segment + 1);
      found[0] = {segment, begin, begin + kChunkRows < end ? begin + kChunkRows : end};
    }
    first += counts[i];
  }
  __syncthreads();
  return found[0];
}

// Runs of W columns that a lane has of a tile. Single columns are 8: a row of the tile then has 512
// bytes or more, and the sectors at its ends, which it shares with the next tile, are few.
template <int W>
constexpr int kRuns = W == 1 ? 8 : 1;
template <int W>
constexpr int kTile = 32 * W * kRuns<W>;

// Calls visit(run, column) for the lane's runs of the tile from column `first` on that c columns
// have.
template <int W, class Visit>
__device__ __forceinline__ void visit_runs(int64_t first, int64_t c, Visit visit) {
  const int64_t own = first + int(threadIdx.x) % 32 * W;
  const int rest = opaque(int(c - own));  // else the comparisons are kept across rows
#pragma unroll
  for (int run = 0; run < kRuns<W>; ++run) {
    if (run * 32 * W < rest) visit(run, own + run * 32 * W);
  }
}

template <int W, class In>
__device__ __forceinline__ void load_bias(const void* bias, int64_t row, int64_t first, int64_t c,
                                          float (*values)[W]) {
  visit_runs<W>(first, c, [&](int run, int64_t column) {
    const auto pack = load_pack<W>(static_cast<const In*>(bias) + row * c + column);
#pragma unroll
    for (int i = 0; i < W; ++i) values[run][i] = to_float(pack.values[i]);
  });
}

// Zeros in the rows of a chunk, by the whole block.
template <int W, class In>
__device__ __forceinline__ void clear_rows(void* rows, const Chunk& chunk, int64_t first,
                                           int64_t c) {
  for (int64_t row = chunk.begin + threadIdx.x / 32; row < chunk.end; row += kWarps) {
    visit_runs<W>(first, c, [&](int, int64_t column) {
      store_pack(static_cast<In*>(rows) + row * c + column, Pack<In, W>{});
    });
  }
}

// Grid: max_chunks(R, N + 1) times the tiles of kTile columns.
template <int W, class In>
__global__ void __launch_bounds__(kThreads, 4)
    bias_activation_kernel(const BiasActivation args, const int tiles) {
  const int n = args.num_experts;
  const Chunk chunk = find_chunk(args.offsets, n, args.num_rows, int(blockIdx.x) / tiles);
  if (chunk.segment < 0) return;
  const int64_t c = args.hidden_size, first = int64_t(blockIdx.x) % tiles * kTile<W>;
  if (chunk.segment == n) return clear_rows<W, In>(args.output, chunk, first, c);
  float bias[kRuns<W>][W];
  load_bias<W, In>(args.bias, chunk.segment, first, c, bias);
  with_activation(args.activation, [&](auto function) {
    for (int64_t row = chunk.begin + threadIdx.x / 32; row < chunk.end; row += kWarps) {
      visit_runs<W>(first, c, [&](int run, int64_t column) {
        const int64_t at = row * c + column;
        auto pack = load_pack<W>(static_cast<const In*>(args.rows) + at);
#pragma unroll
        for (int i = 0; i < W; ++i) {
          const float input = to_float(pack.values[i]) + bias[run][i];
          pack.values[i] = from_float<In>(function.value(input));
        }
        store_pack(static_cast<In*>(args.output) + at, pack);
      });
    }
  });
}

// The gradients of a warp's rows, and their sums, in the order of the rows.
template <int W, class In, class F>
__device__ __forceinline__ void differentiate_rows(const BiasActivationBackward& args, F,
                                                   const Chunk& chunk, int64_t first,
                                                   float (*sums)[W]) {
  const int64_t c = args.hidden_size;
  float bias[kRuns<W>][W] = {};
  if constexpr (!F::kLinear) load_bias<W, In>(args.bias, chunk.segment, first, c, bias);
  for (int64_t row = chunk.begin + threadIdx.x / 32; row < chunk.end; row += kWarps) {
    visit_runs<W>(first, c, [&](int run, int64_t column) {
      const int64_t at = row * c + column;
      auto grad = load_pack<W>(static_cast<const In*>(args.grad_output) + at);
      if constexpr (F::kLinear) {
#pragma unroll
        for (int i = 0; i < W; ++i) sums[run][i] += to_float(grad.values[i]);
      } else {
        const auto input = load_pack<W>(static_cast<const In*>(args.rows) + at);
#pragma unroll
        for (int i = 0; i < W; ++i) {
          const float slope = F::slope(to_float(input.values[i]) + bias[run][i]);
          const float value = to_float(grad.values[i]) * slope;
          sums[run][i] += value;
          grad.values[i] = from_float<In>(value);
        }
        store_pack(static_cast<In*>(args.grad_rows) + at, grad);
      }
    });
  }
}

// Grid: max_chunks(R, N + 1) times the tiles of kTile columns. The workspace: (chunks, c) floats.
template <int W, class In>
__global__ void __launch_bounds__(kThreads, 4)
    bias_activation_backward_kernel(const BiasActivationBackward args, const int tiles) {
  constexpr int kSlots = kRuns<W> * W;  // columns of a lane, at most 8
  static_assert(kSlots <= kWarps, "a warp adds up a slot of all lanes");
  SIMT_SHARED(sums, float[kWarps][kSlots][32]);
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, n = args.num_experts;
  const int index = int(blockIdx.x) / tiles;
  const Chunk chunk = find_chunk(args.offsets, n, args.num_rows, index);
  if (chunk.segment < 0) return;
  const int64_t c = args.hidden_size, first = int64_t(blockIdx.x) % tiles * kTile<W>;
  if (chunk.segment == n) {
    if (args.activation != Activation::kNone) clear_rows<W, In>(args.grad_rows, chunk, first, c);
    return;
  }
  float own[kRuns<W>][W] = {};
  with_activation(args.activation, [&](auto function) {
    differentiate_rows<W, In>(args, function, chunk, first, own);
  });
#pragma unroll
  for (int slot = 0; slot < kSlots; ++slot) sums[warp][slot][lane] = own[slot / W][slot % W];
  __syncthreads();
  // Warp i adds slot i of the lanes, neighbours in shared memory.
  const int64_t column = first + (warp / W * 32 + lane) * W + warp % W;
  if (warp >= kSlots || column >= c) return;
  float total = 0.0f;
  for (int other = 0; other < kWarps; ++other) total += sums[other][warp][lane];
  static_cast<float*>(args.workspace)[index * c + column] = total;
}

// Grid: N times the tiles of 32 columns. Warp w adds the chunks w, w + 8, ... of the expert.
template <class In>
__global__ void __launch_bounds__(kThreads)
    sum_bias_grad_kernel(const BiasActivationBackward args, const int tiles) {
  SIMT_SHARED(before, int[kWarps]);
  SIMT_SHARED(sums, float[kWarps][32]);
  const int thread = int(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int expert = int(blockIdx.x) / tiles;
  int chunks = 0;
  for (int other = thread; other < expert; other += kThreads) {
    chunks += count_chunks(args.offsets[other + 1] - args.offsets[other]);
  }
  chunks = warp_sum(chunks);
  if (lane == 0) before[warp] = chunks;
  __syncthreads();
  int64_t first = 0;
  for (int other = 0; other < kWarps; ++other) first += before[other];
  const int count = count_chunks(args.offsets[expert + 1] - args.offsets[expert]);
  const int64_t c = args.hidden_size, column = int64_t(blockIdx.x) % tiles * 32 + lane;
  const float* parts = static_cast<const float*>(args.workspace) + first * c + column;
  float sum = 0.0f;
  if (column < c) {
#pragma unroll 4
    for (int chunk = warp; chunk < count; chunk += kWarps) sum += parts[chunk * c];
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || column >= c) return;
  float total = 0.0f;
  for (int other = 0; other < kWarps; ++other) total += sums[other][lane];
  static_cast<In*>(args.grad_bias)[expert * c + column] = from_float<In>(total);
}

}  // namespace moge::cuda
