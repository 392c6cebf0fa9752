// What the traced build knows about every two bytes of memory that a kernel may touch: who wrote
// them last, who has read them since, and whether that is ordered before the access at hand.
//
// An access is ordered before the running thread's if it is of an earlier launch, of the same
// thread, on the other side of a __syncthreads, or if a chain of __syncwarp leads from its lane to
// this one: each thread carries the count of its barriers and, for its warp, a vector clock. Two
// bytes, since no kernel here has smaller elements: neighbouring single bytes count as one.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace simt {

struct Clock {
  uint32_t barriers = 0;
  uint32_t lanes[32] = {};  // per lane of the warp, the last step of it that this thread follows

  void join(const Clock& other) {
    barriers = std::max(barriers, other.barriers);
    for (int i = 0; i < 32; ++i) lanes[i] = std::max(lanes[i], other.lanes[i]);
  }
  void follow(const Clock& joined, unsigned lane) {
    *this = joined;
    ++lanes[lane];
  }
};

struct Access {
  uint32_t serial = 0;  // of the block; 0: none yet
  uint32_t barriers = 0, step = 0;
  uint16_t thread = 0;
  bool atomic = false;
  const void* instruction = nullptr;
};

struct Cell {
  Access write, reads[2];  // reads that are not ordered one after another; two say enough
};

enum Permission { kRead = 0, kReadWrite = 1, kWriteFirst = 2 };

// A shared array, or a buffer that the test registered.
struct Region {
  const void* tag;
  std::string name;
  char* begin;
  size_t bytes;
  bool shared;
  Permission permission;
  std::vector<Cell> cells;  // traced build only; none where the kernel may only read

  bool holds(const char* first, size_t count) const {
    return first >= begin && first + count <= begin + bytes;
  }
};

// The serial of the first of so many blocks.
uint32_t begin_launch(uint32_t num_blocks);
void release_shared(std::vector<Region>& regions);
bool on_own_stack(const void* address, size_t bytes);

// In memory.cpp: the region that holds these bytes, or null; and the words for a message.
Region* find_region(const char* first, size_t bytes);
std::string nearest_region(const char* first);
bool is_host_memory(const void* address);

// In shadow.cpp: fails if the running thread may not do this.
void check_access(const void* address, size_t bytes, bool write, bool atomic,
                  const void* instruction);

// In source_line.cpp: "file:line" of the call that returns to `instruction`, then the lines that
// its function was inlined at.
std::string source_line(const void* instruction);

}  // namespace simt
