// The memory that a kernel may touch: shared arrays, and the buffers that the test registered.
#include "simt/scheduler.h"

#include <link.h>
#include <pthread.h>

#include <algorithm>
#include <cstdlib>

#if defined(SIMT_ASAN)
extern "C" {
void __asan_poison_memory_region(void const volatile* address, size_t bytes);
void __asan_unpoison_memory_region(void const volatile* address, size_t bytes);
}
#else
static void __asan_poison_memory_region(void const volatile*, size_t) {}
static void __asan_unpoison_memory_region(void const volatile*, size_t) {}
#endif

namespace simt {
namespace {

#if defined(SIMT_TRACE)
constexpr bool kTrace = true;
#else
constexpr bool kTrace = false;
#endif
constexpr size_t kPad = 256;  // around a shared array: nobody's

const char kDynamic = 0;  // the tag of the dynamic array

std::vector<Region> buffers;               // by address
std::vector<std::vector<Cell>> old_cells;  // of shared arrays of earlier blocks

std::vector<Cell> take_cells(size_t bytes) {
  std::vector<Cell> cells;
  if (!kTrace) return cells;
  if (!old_cells.empty()) {
    cells = std::move(old_cells.back());
    old_cells.pop_back();
  }
  cells.resize(std::max(cells.size(), (bytes + 1) / 2));
  return cells;
}

// Code and constants of this library.
struct Image {
  uintptr_t begin = 0, end = 0;

  Image() {
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* data) {
          Image& image = *static_cast<Image*>(data);
          const uintptr_t mine = reinterpret_cast<uintptr_t>(&buffers);
          uintptr_t begin = UINTPTR_MAX, end = 0;
          for (int i = 0; i < info->dlpi_phnum; ++i) {
            const auto& header = info->dlpi_phdr[i];
            if (header.p_type != PT_LOAD) continue;
            const uintptr_t first = info->dlpi_addr + header.p_vaddr;
            begin = std::min<uintptr_t>(begin, first);
            end = std::max<uintptr_t>(end, first + header.p_memsz);
          }
          if (mine < begin || mine >= end) return 0;
          image.begin = begin;
          image.end = end;
          return 1;
        },
        this);
  }
};

// The stack of the thread that launches: the arguments of the kernel lie there.
struct HostStack {
  uintptr_t begin = 0, end = 0;

  HostStack() {
    pthread_attr_t attributes;
    void* lowest = nullptr;
    size_t bytes = 0;
    if (pthread_getattr_np(pthread_self(), &attributes) != 0) std::abort();
    pthread_attr_getstack(&attributes, &lowest, &bytes);
    pthread_attr_destroy(&attributes);
    begin = reinterpret_cast<uintptr_t>(lowest);
    end = begin + bytes;
  }
};

char* allocate(size_t bytes) {
  char* memory = static_cast<char*>(::operator new(bytes + 2 * kPad, std::align_val_t(128)));
  std::memset(memory, 0xff, bytes + 2 * kPad);  // every float a NaN, every integer -1
  __asan_poison_memory_region(memory, kPad);
  __asan_poison_memory_region(memory + kPad + bytes, kPad);
  return memory + kPad;
}

}  // namespace

void* shared_array(const void* tag, const char* name, size_t bytes) {
  InRuntime scope;
  Quiet quiet;
  // The dynamic array counts whether the kernel uses it or not; the static ones as they are met.
  size_t total = block->launch->shared_bytes + (tag == &kDynamic ? 0 : bytes);
  for (const Region& region : block->shared) {
    if (region.tag == tag) return region.begin;
    if (region.tag != &kDynamic) total += region.bytes;
  }
  const size_t limit = shared_limit(block->launch->function);
  if (total > limit) {
    fail("no room for shared array '" + std::string(name) +
         "': static and dynamic shared memory are " + std::to_string(total) +
         " bytes, more than 48 KiB need cudaFuncSetAttribute, 227 KiB is all");
  }
  // A fresh allocation for every block: the sanitizers then know its bounds and its age.
  block->shared.push_back(
      {tag, name, allocate(bytes), bytes, true, kWriteFirst, take_cells(bytes)});
  return block->shared.back().begin;
}

void* dynamic_shared_array(const char* name) {
  return shared_array(&kDynamic, name, block->launch->shared_bytes);
}

void release_shared(std::vector<Region>& regions) {
  for (Region& region : regions) {
    char* memory = region.begin - kPad;
    __asan_unpoison_memory_region(memory, region.bytes + 2 * kPad);
    ::operator delete(memory, std::align_val_t(128));
    if (kTrace) old_cells.push_back(std::move(region.cells));
  }
  regions.clear();
}

Region* find_region(const char* first, size_t bytes) {
  for (Region& region : block->shared) {
    if (region.holds(first, bytes)) return &region;
  }
  auto after = std::upper_bound(buffers.begin(), buffers.end(), first,
                                [](const char* a, const Region& b) { return a < b.begin; });
  if (after == buffers.begin()) return nullptr;
  Region& region = *std::prev(after);
  return region.holds(first, bytes) ? &region : nullptr;
}

std::string nearest_region(const char* first) {
  const Region* nearest = nullptr;
  ptrdiff_t distance = 4096;  // further away the address has nothing to do with an array
  bool past = false;
  const auto consider = [&](const Region& region) {
    const bool is_past = first >= region.begin;
    const ptrdiff_t away = is_past ? first - (region.begin + region.bytes) : region.begin - first;
    if (std::abs(away) >= distance) return;
    nearest = &region;
    distance = std::abs(away);
    past = is_past;
  };
  for (const Region& region : block->shared) consider(region);
  for (const Region& region : buffers) consider(region);
  if (!nearest) return "in memory that no buffer owns";
  return std::to_string(distance) + (past ? " bytes from the end of " : " bytes before ") +
         (nearest->shared ? "shared array '" : "buffer '") + nearest->name + "' of " +
         std::to_string(nearest->bytes) + " bytes";
}

bool is_host_memory(const void* address) {
  static const Image image;
  static const HostStack stack;
  const uintptr_t at = reinterpret_cast<uintptr_t>(address);
  return (at >= image.begin && at < image.end) || (at >= stack.begin && at < stack.end);
}

}  // namespace simt

void simt_register(const char* name, const void* memory, size_t bytes, int access) {
  using namespace simt;
  const auto permission = Permission(access);
  Region region{nullptr,    name, const_cast<char*>(static_cast<const char*>(memory)), bytes, false,
                permission, {}};
  if (kTrace && permission != kRead) region.cells.resize((bytes + 1) / 2);
  const auto place = std::upper_bound(buffers.begin(), buffers.end(), region.begin,
                                      [](const char* a, const Region& b) { return a < b.begin; });
  buffers.insert(place, std::move(region));
}

void simt_forget() { simt::buffers.clear(); }
