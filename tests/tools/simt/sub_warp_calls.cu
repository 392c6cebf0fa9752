// Which calls the sub-warp kernels take; rows at multiples of 16 bytes, no groups.
#include "cuda/subwarp_launcher.h"

extern "C" int is_sub_warp(int64_t num_tokens, int num_experts, int top_k) {
  return moge::cuda::with_sub_map(num_tokens, num_experts, top_k, nullptr, {nullptr},
                                  [](auto) { return true; });
}
