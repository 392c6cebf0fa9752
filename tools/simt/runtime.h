// What the headers of the emulator ask of its runtime (the .cpp files of this folder).
#pragma once

#include "simt/vocabulary.h"

#include <cstring>

namespace simt {

// A place in the source, from __builtin_FILE and __builtin_LINE.
struct Site {
  const char* file;
  int line;
};

// threadIdx, blockIdx, blockDim, gridDim. By value: an access to the runtime's own memory would be
// taken for one of the kernel's.
uint3 thread_index();
uint3 block_index();
dim3 block_dim();
dim3 grid_dim();
unsigned lane_index();

// Waits until every thread of the block waits at the same barrier; the sum of what they brought.
int block_sync(int predicate, const char* op, Site site);

// What a lane brings to a warp collective.
struct Lane {
  uint64_t value;
  unsigned source;  // the lane that a shuffle reads; elsewhere its own
};
// What the collective hands to `lane`, from what the lanes of `mask` brought.
using Combine = uint64_t (*)(const Lane* lanes, unsigned mask, unsigned lane);
uint64_t warp_sync(unsigned mask, Lane mine, Combine combine, const char* op, Site site);

// warp_sync that also orders memory among the lanes of the mask.
void warp_barrier(unsigned mask, const char* op, Site site);

// The memory of a shared array: one allocation a block, known by the address of `tag`.
void* shared_array(const void* tag, const char* name, size_t bytes);
void* dynamic_shared_array(const char* name);

// Ends the launch: "kernel, block, thread: what, at site". The thread is left where it stands.
[[noreturn]] void fail(const char* what, Site site);

struct Launch {
  const char* kernel;
  Site site;
  const void* function;
  dim3 grid, block;
  size_t shared_bytes;
  void (*body)(void*);  // runs the kernel once, as the current thread
  void* closure;
};
void run(const Launch& launch);

// Raises the limit of a kernel's dynamic shared memory; an error beyond what a block can have.
cudaError_t allow_shared_bytes(const void* function, size_t bytes);

// Values travel through collectives as 64 bits.
template <class T>
uint64_t pack(T value) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "a collective moves at most 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
}
template <class T>
T unpack(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace simt

// For tests. access: 0 the kernel may read it, 1 it may also write it, 2 it must write before it
// reads. Buffers are known until simt_forget(); the traced build refuses every other memory.
extern "C" {
void simt_schedule(long seed);  // 0 in order, -1 in reverse, above 0 drawn from the seed
void simt_register(const char* name, const void* memory, size_t bytes, int access);
void simt_forget();
cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t error);
}
