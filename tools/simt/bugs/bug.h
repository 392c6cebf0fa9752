// Each file here holds one kernel with one bug of a class that the emulator must catch, and the
// same kernel without it (kFixed). Lines that the report must name end in the marker "<- named".
#pragma once

#include "cuda/portable.cuh"

// Runs `kernel` with the bug or without on `blocks` of `threads` threads.
#define BUG(kernel, blocks, threads, shared_bytes)                                 \
  extern "C" void run_##kernel(int fixed, float* out, const float* in) {           \
    if (fixed) {                                                                   \
      SIMT_LAUNCH(kernel<true>, blocks, threads, shared_bytes, nullptr, out, in);  \
    } else {                                                                       \
      SIMT_LAUNCH(kernel<false>, blocks, threads, shared_bytes, nullptr, out, in); \
    }                                                                              \
  }
