// The state of a launch, shared by the .cpp files of the runtime.
#pragma once

#include "simt/runtime.h"
#include "simt/fiber.h"
#include "simt/shadow.h"

#include <string>
#include <vector>

namespace simt {

constexpr unsigned kLanes = 32, kMaxThreads = 1024, kMaxWarps = kMaxThreads / kLanes;

enum class State : uint8_t { kReady, kAtBarrier, kAtCollective, kExited };

// One CUDA thread, and where it waits.
struct Thread {
  uint3 index;
  unsigned linear, lane, warp;
  State state = State::kReady;
  const char* op = "";
  Site site{"", 0};
  int predicate = 0;      // at a barrier: what it brings, then the sum
  unsigned mask = 0;      // at a warp collective
  uint64_t received = 0;  // from it
  Clock clock;            // what it is ordered after, for the shadow
  // The same for ThreadSanitizer. Tags are used by turns: a thread that is late to leave a
  // barrier must not see what others released on their way to the one after.
  char warp_tags[2] = {};
  unsigned warp_turn = 0, block_turn = 0;
};

struct Block {
  const Launch* launch;
  uint3 index;
  uint32_t serial;  // no two blocks of a process have the same
  unsigned live;
  std::vector<Thread> threads;
  Lane brought[kMaxWarps][kLanes];
  // A bit per lane: may run; waits at a warp collective; has exited or never existed.
  unsigned ready[kMaxWarps] = {}, waiting[kMaxWarps] = {}, gone[kMaxWarps] = {};
  char block_tags[2] = {};
  std::vector<Region> shared;

  unsigned num_warps() const { return (unsigned(threads.size()) + kLanes - 1) / kLanes; }
};

extern Block* block;    // that runs, or null
extern Thread* self;    // that runs, or null
extern bool in_kernel;  // its code runs, not the runtime's: its accesses count

// Held by every function of the runtime that a kernel calls.
struct InRuntime {
  InRuntime() { in_kernel = false; }
  ~InRuntime() { in_kernel = true; }
};

// Leaves the running thread until it is chosen among those that are ready.
void suspend();
void make_ready(Thread& thread);

// Records the first failure of the launch; that of a thread begins with the kernel and the thread.
void set_error(const std::string& message);
void set_error(const Thread& thread, const std::string& what);
bool failed();
[[noreturn]] void fail(const std::string& what);  // of the running thread
size_t shared_limit(const void* function);        // bytes of a block, static and dynamic

// In collectives.cpp. When nobody is ready: opens the barrier all wait at, or reports why not.
void open_barrier();
void lane_exited(const Thread& thread);

std::string describe(Site site);
std::string describe(const Thread& thread);
std::string hex(unsigned mask);

}  // namespace simt
