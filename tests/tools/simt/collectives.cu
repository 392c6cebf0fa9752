// Kernels whose results are known by hand, for test_simt_emulator.py.
#include "simt/simt.h"

// out[i] per thread of two warps, one row of `kWidth` results a thread.
constexpr int kWidth = 19;
__global__ void every_collective(double* out) {
  const int thread = threadIdx.x, lane = thread % 32;
  const unsigned all = 0xffffffffu;
  double* row = out + thread * kWidth;
  row[0] = __shfl_xor_sync(all, thread, 5);
  row[1] = __shfl_down_sync(all, thread, 3);
  row[2] = __shfl_up_sync(all, thread, 3, 8);
  row[3] = __shfl_sync(all, thread, 9, 8);
  row[4] = __shfl_xor_sync(all, 1.5 * thread, 1);
  row[5] = __ballot_sync(all, lane & 1);
  row[6] = __any_sync(all, thread == 40);
  row[7] = __all_sync(all, thread < 40);
  row[8] = __match_any_sync(all, lane / 4);
  row[9] = __reduce_max_sync(all, lane * 7 % 32 - 40);
  row[10] = __reduce_min_sync(all, unsigned(thread));
  row[11] = __reduce_add_sync(all, thread);
  row[12] = lane < 16 ? __reduce_add_sync(0xffffu, lane) : -1;
  row[13] = __syncthreads_count(thread < 40);
  row[14] = __syncthreads_or(thread == 63);
  row[15] = __syncthreads_and(thread != 63);
  row[16] = __reduce_xor_sync(all, unsigned(lane)) + __reduce_or_sync(all, unsigned(lane));
  row[17] = __shfl_up_sync(all, thread, 1);
  row[18] = __shfl_down_sync(all, thread, 2, 4);
}

__global__ void every_function(double* out, const float* in) {
  const float four = __ldg(in);
  const double values[] = {__expf(four - 4.0f),
                           rsqrtf(four),
                           double(__float_as_uint(1.0f)),
                           __uint_as_float(0x40400000u),
                           max(2, 3.5f),
                           min(-1, 2),
                           max(four, NAN),
                           double(__popc(0xf0f0u)),
                           double(__ffs(8)),
                           double(__clz(1))};
  for (int i = 0; i < 10; ++i) out[i] = values[i];
}

__global__ void traps(int* out) {
  if (threadIdx.x == 3) __trap();
  out[threadIdx.x] = 1;
}

__global__ void every_index(int* out) {
  const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const int threads = blockDim.x * blockDim.y * blockDim.z;
  out[block * threads + thread] = 1000 * block + thread;
}

__global__ void every_atomic(int* out, unsigned* bits, float* sum, unsigned long long* large) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;  // 0..191
  atomicAdd(&out[0], i);
  atomicSub(&out[1], 2);
  atomicMax(&out[2], i % 100);
  atomicMin(&out[3], -i);
  atomicCAS(&out[4], i, i + 1);  // 0 -> 1 -> 2 ... only where the order of threads is theirs
  atomicExch(&out[5], 7);
  atomicOr(&bits[0], 1u << i % 32);
  atomicAnd(&bits[1], ~(1u << i % 8));
  atomicAdd(sum, 0.5f);
  atomicAdd(large, 1ull << 33);
}

// Shared arrays: two static ones and the dynamic one are different memory, filled with NaN.
__global__ void shared_arrays(float* out) {
  SIMT_SHARED(one, float[32]);
  SIMT_SHARED(grid, float[4][8]);
  SIMT_SHARED_DYN(float, many);
  const int i = threadIdx.x;
  out[i] = one[i];
  __syncthreads();
  one[i] = float(i);
  grid[i / 8][i % 8] = float(100 + i);
  many[i] = float(1000 + i);
  __syncthreads();
  out[32 + i] = one[31 - i] + grid[i % 4][i / 4] + many[(i + 1) % 32];
}

// The thread that comes last has the last word: what it says depends on the schedule.
__global__ void last_word(int* out) { atomicExch(out, int(blockIdx.x * blockDim.x + threadIdx.x)); }

__global__ void needs_partner(int* out) {
  if (threadIdx.x == 0) __syncwarp();
  out[threadIdx.x] = int(threadIdx.x);
}

extern "C" {
void run_every_collective(double* out) { SIMT_LAUNCH(every_collective, 1, 64, 0, nullptr, out); }
void run_every_function(double* out, const float* in) {
  SIMT_LAUNCH(every_function, 1, 1, 0, nullptr, out, in);
}
void run_traps(int* out) { SIMT_LAUNCH(traps, 1, 32, 0, nullptr, out); }
void run_every_index(int* out) {
  SIMT_LAUNCH(every_index, dim3(2, 3, 2), dim3(4, 2, 3), 0, nullptr, out);
}
void run_every_atomic(int* out, unsigned* bits, float* sum, unsigned long long* large) {
  SIMT_LAUNCH(every_atomic, 3, 64, 0, nullptr, out, bits, sum, large);
}
void run_shared_arrays(float* out) {
  SIMT_LAUNCH(shared_arrays, 1, 32, 32 * sizeof(float), nullptr, out);
}
void run_last_word(int* out) { SIMT_LAUNCH(last_word, 4, 64, 0, nullptr, out); }
void run_needs_partner(int* out) { SIMT_LAUNCH(needs_partner, 1, 32, 0, nullptr, out); }
void run_too_many_threads(int* out) { SIMT_LAUNCH(last_word, 1, 1056, 0, nullptr, out); }
void run_arguments(int* out, int* count) {
  SIMT_LAUNCH(last_word, 1, 32, 0, nullptr, (++*count, out));
}
}
