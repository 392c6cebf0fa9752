// Switches stacks by saving the registers that a call preserves; x86-64 and arm64 only, the
// platforms that build this project. swapcontext would do a system call at every switch.
#include "simt/fiber.h"

#include <cstdint>
#include <sys/mman.h>
#include <utility>

#if defined(SIMT_ASAN)
extern "C" {
void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t bytes);
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* bytes);
void __asan_unpoison_memory_region(void const volatile* address, size_t bytes);
}
#endif
#if defined(SIMT_TSAN)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
}
#endif

extern "C" void simt_switch_stack(void** save, void* load);
#if defined(__x86_64__)
__asm__(
    ".text\n.globl simt_switch_stack\n.hidden simt_switch_stack\n"
    ".type simt_switch_stack,@function\nsimt_switch_stack:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp,(%rdi)\nmovq %rsi,%rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n"
    ".size simt_switch_stack,.-simt_switch_stack\n");
#elif defined(__aarch64__)
__asm__(
    ".text\n.globl simt_switch_stack\n.hidden simt_switch_stack\n"
    ".type simt_switch_stack,%function\nsimt_switch_stack:\n"
    "sub sp,sp,#160\n"
    "stp x19,x20,[sp,#0]\nstp x21,x22,[sp,#16]\nstp x23,x24,[sp,#32]\nstp x25,x26,[sp,#48]\n"
    "stp x27,x28,[sp,#64]\nstp x29,x30,[sp,#80]\n"
    "stp d8,d9,[sp,#96]\nstp d10,d11,[sp,#112]\nstp d12,d13,[sp,#128]\nstp d14,d15,[sp,#144]\n"
    "mov x9,sp\nstr x9,[x0]\nmov sp,x1\n"
    "ldp x19,x20,[sp,#0]\nldp x21,x22,[sp,#16]\nldp x23,x24,[sp,#32]\nldp x25,x26,[sp,#48]\n"
    "ldp x27,x28,[sp,#64]\nldp x29,x30,[sp,#80]\n"
    "ldp d8,d9,[sp,#96]\nldp d10,d11,[sp,#112]\nldp d12,d13,[sp,#128]\nldp d14,d15,[sp,#144]\n"
    "add sp,sp,#160\nret\n"
    ".size simt_switch_stack,.-simt_switch_stack\n");
#else
#error "tools/simt switches stacks on x86-64 and arm64 only"
#endif

namespace simt {
namespace {

constexpr size_t kStackBytes = 128 << 10;  // AddressSanitizer's frames are several times larger

// Where the scheduler stands while a fiber runs.
struct Outside {
  void* stack_pointer = nullptr;
  const void* stack_bottom = nullptr;
  size_t stack_bytes = 0;
  void* tsan_fiber = nullptr;
} outside;

}  // namespace

Fiber::Fiber(Fiber&& other) noexcept
    : stack_pointer_(other.stack_pointer_),
      stack_(std::exchange(other.stack_, nullptr)),
      asan_fake_stack_(other.asan_fake_stack_),
      tsan_fiber_(std::exchange(other.tsan_fiber_, nullptr)) {}

Fiber::~Fiber() {
#if defined(SIMT_TSAN)
  if (tsan_fiber_) __tsan_destroy_fiber(tsan_fiber_);
#endif
  if (stack_) munmap(stack_, kStackBytes);
}

void Fiber::prepare(void (*entry)()) {
  if (!stack_) {
    stack_ = static_cast<char*>(mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0));
  }
#if defined(SIMT_ASAN)
  __asan_unpoison_memory_region(stack_, kStackBytes);
#endif
#if defined(SIMT_TSAN)
  if (tsan_fiber_) __tsan_destroy_fiber(tsan_fiber_);
  tsan_fiber_ = __tsan_create_fiber(0);
#endif
  void** top = reinterpret_cast<void**>(stack_ + kStackBytes);
#if defined(__x86_64__)
  *--top = nullptr;  // entry() sees the alignment that a call leaves
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
#else
  for (int i = 0; i < 20; ++i) *--top = nullptr;
  top[11] = reinterpret_cast<void*>(entry);  // x30, the return address
#endif
  stack_pointer_ = top;
}

void Fiber::enter() {
#if defined(SIMT_ASAN)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, stack_, kStackBytes);
#endif
#if defined(SIMT_TSAN)
  outside.tsan_fiber = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(tsan_fiber_, 1);  // 1: a switch orders no memory
#endif
  simt_switch_stack(&outside.stack_pointer, stack_pointer_);
#if defined(SIMT_ASAN)
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

void Fiber::leave() {
#if defined(SIMT_ASAN)
  __sanitizer_start_switch_fiber(&asan_fake_stack_, outside.stack_bottom, outside.stack_bytes);
#endif
#if defined(SIMT_TSAN)
  __tsan_switch_to_fiber(outside.tsan_fiber, 1);
#endif
  simt_switch_stack(&stack_pointer_, outside.stack_pointer);
  landed();
}

void Fiber::landed() {
#if defined(SIMT_ASAN)
  __sanitizer_finish_switch_fiber(asan_fake_stack_, &outside.stack_bottom, &outside.stack_bytes);
#endif
}

bool Fiber::owns(const void* address, size_t bytes) const {
  const char* first = static_cast<const char*>(address);
  return first >= stack_ && first + bytes <= stack_ + kStackBytes;
}

}  // namespace simt
