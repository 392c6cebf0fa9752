// Runs the blocks of a launch and chooses which of their threads goes on.
#include "simt/scheduler.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <memory>
#include <numeric>
#include <utility>

namespace simt {

Block* block = nullptr;
Thread* self = nullptr;
bool in_kernel = false;

namespace {

long schedule = 0;
uint64_t random_state = 1;
std::string launch_error, last_error;
cudaError_t last_code = cudaSuccess;
std::map<const void*, size_t> raised_shared_bytes;
char begun_tag, ended_tag;  // ThreadSanitizer: a launch follows the one before

constexpr size_t kSharedBytes = 48 << 10, kMaxSharedBytes = 227 << 10;

// Blocks take fibers by turns: ThreadSanitizer would take two blocks on one fiber for ordered.
#if defined(SIMT_TSAN)
constexpr unsigned kFiberSets = 3;
#else
constexpr unsigned kFiberSets = 1;
#endif
std::vector<Fiber> fiber_sets[kFiberSets];
std::vector<Fiber>* fibers = nullptr;

Fiber& fiber_of(const Thread& thread) { return (*fibers)[thread.linear]; }

}  // namespace

void suspend() { fiber_of(*self).leave(); }

namespace {

uint64_t draw(uint64_t below) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state % below;
}

// A fiber's whole life: one thread of one block after another.
void thread_main() {
  fiber_of(*self).landed();
  for (;;) {
    acquire(&begun_tag);
    in_kernel = true;
    block->launch->body(block->launch->closure);
    in_kernel = false;
    release(&ended_tag);
    self->state = State::kExited;
    suspend();
  }
}

// The thread to run next, or null if every one waits or has exited.
Thread* choose() {
  const unsigned warps = block->num_warps();
  unsigned candidates[kMaxWarps], count = 0;
  for (unsigned warp = 0; warp < warps; ++warp) {
    if (block->ready[warp]) candidates[count++] = warp;
  }
  if (count == 0) return nullptr;
  unsigned warp = candidates[0], lane;
  if (schedule == 0) {
    lane = unsigned(__builtin_ctz(block->ready[warp]));
  } else if (schedule < 0) {
    warp = candidates[count - 1];
    lane = 31u - unsigned(__builtin_clz(block->ready[warp]));
  } else {
    warp = candidates[draw(count)];
    unsigned ready = block->ready[warp];
    for (uint64_t skip = draw(unsigned(__builtin_popcount(ready))); skip; --skip) {
      ready &= ready - 1;
    }
    lane = unsigned(__builtin_ctz(ready));
  }
  return &block->threads[warp * kLanes + lane];
}

std::unique_ptr<Block> make_block(const Launch& launch, uint64_t index, uint32_t serial) {
  Quiet quiet;
  auto result = std::make_unique<Block>();
  const dim3 &grid = launch.grid, &dim = launch.block;
  result->launch = &launch;
  result->index = {unsigned(index % grid.x), unsigned(index / grid.x % grid.y),
                   unsigned(index / (uint64_t(grid.x) * grid.y))};
  result->serial = serial;
  result->live = dim.x * dim.y * dim.z;
  result->threads.resize(result->live);
  std::fill(std::begin(result->gone), std::end(result->gone), ~0u);
  for (unsigned i = 0; i < result->live; ++i) {
    Thread& thread = result->threads[i];
    thread.index = {i % dim.x, i / dim.x % dim.y, i / (dim.x * dim.y)};
    thread.linear = i;
    thread.lane = i % kLanes;
    thread.warp = i / kLanes;
    thread.clock.lanes[thread.lane] = 1;  // nobody is ordered after it yet
    result->ready[thread.warp] |= 1u << thread.lane;
    result->gone[thread.warp] &= ~(1u << thread.lane);
  }
  return result;
}

void run_block(std::unique_ptr<Block> owned, uint64_t turn) {
  block = owned.get();
  fibers = &fiber_sets[turn % kFiberSets];
  if (fibers->size() < block->threads.size()) fibers->resize(block->threads.size());
  for (unsigned i = 0; i < block->threads.size(); ++i) {
    if (!(*fibers)[i].prepared()) (*fibers)[i].prepare(thread_main);
  }
  release(&begun_tag);
  while (block->live && !failed()) {
    self = choose();
    if (!self) {
      open_barrier();
      continue;
    }
    block->ready[self->warp] &= ~(1u << self->lane);
    fiber_of(*self).enter();
    in_kernel = false;
    if (!failed() && self->state == State::kExited) {
      --block->live;
      lane_exited(*self);
    }
  }
  self = nullptr;
  // A failure leaves threads in the middle of the kernel; their fibers begin anew.
  if (failed()) {
    for (Fiber& fiber : *fibers) fiber.prepare(thread_main);
  }
  Quiet quiet;
  release_shared(block->shared);
  owned.reset();
  block = nullptr;
}

const char* limit_broken(const Launch& launch) {
  const dim3 &grid = launch.grid, &dim = launch.block;
  const uint64_t threads = uint64_t(dim.x) * dim.y * dim.z;
  if (threads == 0 || threads > kMaxThreads) return "a block has 1 to 1024 threads";
  if (dim.z > 64) return "a block is at most 64 deep";
  if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
    return "a grid has 1 to 2^31 - 1, 65535, 65535 blocks along its axes";
  }
  const auto raised = raised_shared_bytes.find(launch.function);
  if (launch.shared_bytes > kMaxSharedBytes) return "a block has at most 227 KiB of shared memory";
  if (launch.shared_bytes > (raised == raised_shared_bytes.end() ? kSharedBytes : raised->second)) {
    return "more than 48 KiB of dynamic shared memory need cudaFuncSetAttribute";
  }
  return nullptr;
}

void run_blocks(const Launch& launch) {
  const uint64_t total = uint64_t(launch.grid.x) * launch.grid.y * launch.grid.z;
  std::vector<uint64_t> order(total);
  std::iota(order.begin(), order.end(), 0);
  if (schedule < 0) std::reverse(order.begin(), order.end());
  if (schedule > 0) {
    random_state = 0x9e3779b97f4a7c15u * uint64_t(schedule) | 1;
    for (uint64_t i = total; i > 1; --i) std::swap(order[i - 1], order[draw(i)]);
  }
  const uint32_t first_serial = begin_launch(uint32_t(total));
  for (uint64_t turn = 0; turn < total && !failed(); ++turn) {
    run_block(make_block(launch, order[turn], first_serial + uint32_t(turn)), turn);
  }
  acquire(&ended_tag);
}

}  // namespace

bool failed() { return !launch_error.empty(); }

void set_error(const std::string& message) {
  if (launch_error.empty()) launch_error = message;
}

void set_error(const Thread& thread, const std::string& what) {
  const Launch& launch = *block->launch;
  set_error(std::string(launch.kernel) + " launched at " + describe(launch.site) + ", " +
            describe(thread) + ": " + what);
}

void fail(const std::string& what) {
  in_kernel = false;
  set_error(*self, what);
  fiber_of(*self).leave();
  __builtin_unreachable();
}

void fail(const char* what, Site site) { fail(std::string(what) + " at " + describe(site)); }

void make_ready(Thread& thread) {
  thread.state = State::kReady;
  block->ready[thread.warp] |= 1u << thread.lane;
}

bool on_own_stack(const void* address, size_t bytes) {
  return fiber_of(*self).owns(address, bytes);
}

void run(const Launch& launch) {
  cudaError_t code = cudaErrorLaunchFailure;
  launch_error.clear();
  if (const char* limit = limit_broken(launch)) {
    code = cudaErrorInvalidConfiguration;
    set_error(std::string(launch.kernel) + " launched at " + describe(launch.site) + ": " + limit);
  } else {
    run_blocks(launch);
  }
  if (failed() && last_code == cudaSuccess) {
    last_code = code;
    last_error = launch_error;
  }
}

size_t shared_limit(const void* function) {
  return raised_shared_bytes.count(function) ? kMaxSharedBytes : kSharedBytes;
}

cudaError_t allow_shared_bytes(const void* function, size_t bytes) {
  if (bytes > kMaxSharedBytes) {
    last_error = "cudaFuncSetAttribute: a block has at most 227 KiB of shared memory";
    return last_code = cudaErrorInvalidValue;
  }
  raised_shared_bytes[function] = bytes;
  return cudaSuccess;
}

uint3 thread_index() { return self->index; }
uint3 block_index() { return block->index; }
dim3 block_dim() { return block->launch->block; }
dim3 grid_dim() { return block->launch->grid; }
unsigned lane_index() { return self->lane; }

std::string describe(Site site) {
  const char* slash = std::strrchr(site.file, '/');
  return std::string(slash ? slash + 1 : site.file) + ":" + std::to_string(site.line);
}

std::string describe(const Thread& thread) {
  const auto triple = [](uint3 i) {
    return "(" + std::to_string(i.x) + "," + std::to_string(i.y) + "," + std::to_string(i.z) + ")";
  };
  return "block " + triple(block->index) + " thread " + triple(thread.index);
}

std::string hex(unsigned mask) {
  char text[16];
  std::snprintf(text, sizeof text, "0x%08x", mask);
  return text;
}

}  // namespace simt

void simt_schedule(long seed) { simt::schedule = seed; }

cudaError_t cudaGetLastError() { return std::exchange(simt::last_code, cudaSuccess); }
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : simt::last_error.c_str();
}
