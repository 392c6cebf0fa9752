// The traced build's checks of one access. See shadow.h.
#include "simt/shadow.h"
#include "simt/scheduler.h"

namespace simt {
namespace {

uint32_t launch_serial = 1, next_serial = 1;

Access access_of(const Thread& thread, bool atomic, const void* instruction) {
  Access access;
  access.serial = block->serial;
  access.barriers = thread.clock.barriers;
  access.step = thread.clock.lanes[thread.lane];
  access.thread = uint16_t(thread.linear);
  access.atomic = atomic;
  access.instruction = instruction;
  return access;
}

bool ordered_before_self(const Access& past) {
  if (past.serial < launch_serial) return true;
  if (past.serial != block->serial) return false;
  if (past.thread == self->linear || past.barriers < self->clock.barriers) return true;
  return past.thread / kLanes == self->warp && self->clock.lanes[past.thread % kLanes] >= past.step;
}

std::string quoted(const Region& region, size_t offset) {
  return std::string(region.shared ? "shared array '" : "buffer '") + region.name + "' at byte " +
         std::to_string(offset);
}

[[noreturn]] void fail_race(const Region& region, size_t offset, const Access& past,
                            const char* past_verb, const Access& now, const char* verb) {
  const bool same_block = past.serial == block->serial;
  const std::string other = same_block
                                ? describe(block->threads[past.thread])
                                : "thread " + std::to_string(past.thread) + " of another block";
  fail("race on " + quoted(region, offset) + ": " + verb + " at " + source_line(now.instruction) +
       ", " + past_verb + " by " + other + " at " + source_line(past.instruction) +
       (same_block ? ", with neither __syncthreads nor __syncwarp between them"
                   : ", and nothing orders the blocks of a launch"));
}

// Remembers a read in place of one that is ordered before it, or of none, or else of one that
// another read of the same warp stands for.
void remember_read(Cell& cell, const Access& read) {
  for (Access& slot : cell.reads) {
    if (ordered_before_self(slot)) {
      slot = read;
      return;
    }
  }
  if (cell.reads[0].serial == cell.reads[1].serial &&
      cell.reads[0].thread / kLanes == cell.reads[1].thread / kLanes) {
    cell.reads[1] = read;
  }
}

void check_cell(Region& region, size_t offset, bool write, const Access& now) {
  Cell& cell = region.cells[offset / 2];
  const bool unwritten =
      region.shared ? cell.write.serial != block->serial : cell.write.serial == 0;
  if (!write || now.atomic) {
    if (unwritten && region.permission == kWriteFirst) {
      fail("read of unwritten " + quoted(region, offset) + " at " + source_line(now.instruction));
    }
  }
  // What a shared array's memory held for an earlier block is no access to it.
  const bool fresh = region.shared && unwritten;
  if (!fresh && !(cell.write.atomic && now.atomic) && !ordered_before_self(cell.write)) {
    fail_race(region, offset, cell.write, "write", now, write ? "write" : "read");
  }
  if (!write) {
    remember_read(cell, now);
    return;
  }
  for (Access& read : cell.reads) {
    if (read.serial != 0 && !(read.atomic && now.atomic) && !ordered_before_self(read) &&
        !(region.shared && read.serial != block->serial)) {
      fail_race(region, offset, read, "read", now, "write");
    }
    read = Access();
  }
  cell.write = now;
}

}  // namespace

uint32_t begin_launch(uint32_t num_blocks) {
  launch_serial = next_serial;
  next_serial += num_blocks;
  return launch_serial;
}

void check_access(const void* address, size_t bytes, bool write, bool atomic,
                  const void* instruction) {
  if (!in_kernel || on_own_stack(address, bytes)) return;
  InRuntime scope;
  const char* first = static_cast<const char*>(address);
  Region* region = find_region(first, bytes);
  if (!region) {
    if (is_host_memory(address)) return;
    fail(std::string("out of bounds: ") + (write ? "write" : "read") + " of " +
         std::to_string(bytes) + " bytes at " + source_line(instruction) + ", " +
         nearest_region(first));
  }
  const size_t offset = size_t(first - region->begin);
  if (write && region->permission == kRead) {
    fail("write to input " + quoted(*region, offset) + " at " + source_line(instruction));
  }
  if (region->cells.empty()) return;
  const Access now = access_of(*self, atomic, instruction);
  for (size_t i = offset / 2 * 2; i < offset + bytes; i += 2) check_cell(*region, i, write, now);
}

}  // namespace simt
