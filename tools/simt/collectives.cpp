// Barriers and warp collectives: who has arrived, who may go on, and what is wrong.
#include "simt/scheduler.h"

namespace simt {
namespace {

bool same(Site a, Site b) { return a.line == b.line && std::strcmp(a.file, b.file) == 0; }

std::string where(const Thread& thread) {
  return std::string(thread.op) + " at " + describe(thread.site);
}

template <class Visit>
void for_lanes(unsigned mask, Visit visit) {
  for (; mask; mask &= mask - 1) visit(unsigned(__builtin_ctz(mask)));
}

Thread& lane_of(unsigned warp, unsigned lane) { return block->threads[warp * kLanes + lane]; }

std::string absent_lanes(const Thread& thread) {
  return where(thread) + ": mask " + hex(thread.mask) +
         " names lanes that exited or do not exist: " + hex(thread.mask & block->gone[thread.warp]);
}

// Runs the collective if the running thread is the last of its mask to arrive. Without `combine`
// it is a __syncwarp, which hands every lane the turns of all lanes.
void complete(Combine combine) {
  const unsigned warp = self->warp, mask = self->mask;
  if ((mask & block->waiting[warp]) != mask) return;
  for_lanes(mask, [&](unsigned lane) {
    const Thread& other = lane_of(warp, lane);
    if (other.mask != mask || !same(other.site, self->site)) {
      fail("divergent warp collective: " + where(*self) + " with mask " + hex(mask) + ", but " +
           describe(other) + " in " + where(other) + " with mask " + hex(other.mask));
    }
  });
  Quiet quiet;
  if (combine) {
    for_lanes(mask, [&](unsigned lane) {
      lane_of(warp, lane).received = combine(block->brought[warp], mask, lane);
    });
  } else {
    Clock joined;
    uint64_t turns = 0;
    for_lanes(mask, [&](unsigned lane) {
      joined.join(lane_of(warp, lane).clock);
      turns |= block->brought[warp][lane].value << lane;
    });
    for_lanes(mask, [&](unsigned lane) {
      lane_of(warp, lane).clock.follow(joined, lane);
      lane_of(warp, lane).received = turns;
    });
  }
  for_lanes(mask, [&](unsigned lane) { make_ready(lane_of(warp, lane)); });
  block->waiting[warp] &= ~mask;
}

uint64_t collective(unsigned mask, Lane mine, Combine combine, const char* op, Site site) {
  const unsigned warp = self->warp;
  self->state = State::kAtCollective;
  self->mask = mask;
  self->op = op;
  self->site = site;
  if (!(mask >> self->lane & 1)) {
    fail(where(*self) + ": the caller is not in its mask " + hex(mask));
  }
  if (mine.source >= kLanes || !(mask >> mine.source & 1)) {
    fail(where(*self) + ": reads lane " + std::to_string(mine.source) +
         ", which is not in its mask " + hex(mask));
  }
  if (mask & block->gone[warp]) fail(absent_lanes(*self));
  block->brought[warp][self->lane] = mine;
  block->waiting[warp] |= 1u << self->lane;
  complete(combine);
  suspend();
  return self->received;
}

// Runs of neighbouring threads that wait at the same place.
std::string where_everybody_waits() {
  std::string text;
  const auto& threads = block->threads;
  const auto place = [](const Thread& thread) {
    return thread.state == State::kExited ? std::string("the end") : where(thread);
  };
  for (size_t from = 0, to; from < threads.size(); from = to) {
    for (to = from + 1; to < threads.size() && place(threads[to]) == place(threads[from]);) ++to;
    text += "\n  threads " + std::to_string(from) + " to " + std::to_string(to - 1) + ": " +
            place(threads[from]);
  }
  return text;
}

}  // namespace

int block_sync(int predicate, const char* op, Site site) {
  InRuntime scope;
  void* tag = &block->block_tags[self->block_turn++ & 1];
  self->state = State::kAtBarrier;
  self->op = op;
  self->site = site;
  self->predicate = predicate;
  release(tag);
  suspend();
  acquire(tag);
  return self->predicate;
}

void open_barrier() {
  const Thread* first = nullptr;
  int sum = 0;
  for (const Thread& thread : block->threads) {
    if (thread.state == State::kExited) continue;
    if (!first) first = &thread;
    if (thread.state != State::kAtBarrier || !same(thread.site, first->site)) {
      set_error(thread, "divergence, nobody can go on:" + where_everybody_waits());
      return;
    }
    sum += thread.predicate;
  }
  for (Thread& thread : block->threads) {
    if (thread.state == State::kExited) continue;
    thread.predicate = sum;
    ++thread.clock.barriers;
    make_ready(thread);
  }
}

void lane_exited(const Thread& thread) {
  block->gone[thread.warp] |= 1u << thread.lane;
  for_lanes(block->waiting[thread.warp], [&](unsigned lane) {
    const Thread& other = lane_of(thread.warp, lane);
    if (other.mask >> thread.lane & 1) {
      set_error(other, absent_lanes(other));
    }
  });
}

uint64_t warp_sync(unsigned mask, Lane mine, Combine combine, const char* op, Site site) {
  InRuntime scope;
  return collective(mask, mine, combine, op, site);
}

void warp_barrier(unsigned mask, const char* op, Site site) {
  InRuntime scope;
  const unsigned turn = ++self->warp_turn & 1;
  release(&self->warp_tags[turn]);
  const uint64_t turns = collective(mask, {turn, self->lane}, nullptr, op, site);
  for_lanes(mask, [turns](unsigned lane) {
    acquire(&lane_of(self->warp, lane).warp_tags[turns >> lane & 1]);
  });
}

}  // namespace simt
