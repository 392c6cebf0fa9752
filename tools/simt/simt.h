// CUDA kernels on the CPU, for tests: the same .cu and .cuh files, compiled by g++ instead of nvcc.
//
// A launch runs its blocks one after another; every CUDA thread of a block is a fiber on a stack of
// its own, switched to and from by the one OS thread there is. A fiber runs until it reaches a
// collective (barrier, shuffle, vote, reduction), waits there, and goes on when everybody that the
// collective names has arrived. What a kernel computes must not depend on which fiber runs next, so
// there are three schedules (simt_schedule): blocks and threads in order, in reverse, and in an
// order drawn anew at every switch from a seed.
//
// What is checked, by name of the kernel and the array and by line of the source, and where:
//
//   in every build
//     barrier divergence          threads of a block wait at different barriers, or some at a
//                                 barrier and some at a warp collective that cannot complete
//     collectives misused         the lanes that a mask names do not all arrive, have exited or do
//                                 not exist, arrive at different calls or with different masks; the
//                                 caller, or the lane that a shuffle reads, is not in the mask
//     launches out of limits      block size, grid, shared memory (48 KiB unless raised, 227 at
//     most)
//   in the traced build (SIMT_TRACE), at every load and store
//     out of bounds               of a shared array, or of every buffer the test registered; a
//     write
//                                 to an input buffer; a misaligned vector access
//     reads of unwritten memory   shared arrays, and buffers registered as output
//     races                       two threads of a block without __syncthreads or __syncwarp
//     between
//                                 them, or two blocks of a launch, one of them writing, not both
//                                 atomically. Decided by order, not by chance: any schedule shows
//                                 it.
//   in the AddressSanitizer + UndefinedBehaviorSanitizer build
//     out of bounds of shared arrays and of arrays on the stack, undefined arithmetic, misaligned
//     vector accesses
//   in the ThreadSanitizer build
//     races, as in the traced build but by another implementation; blocks i and i+1 and i and i+2
//     are told apart
//
// The traced build is g++ -fsanitize=thread linked against trace.cpp instead of libtsan: the
// compiler calls __tsan_read4 and its kin before each access, and ours look the address up in a
// shadow of it (shadow.h). In every other build shared arrays are filled with NaN before a block
// starts, so that a read of what nobody wrote shows in the numbers.
//
// Only __syncthreads and __syncwarp order memory, as the CUDA guide has it: a shuffle or vote does
// not, and neither does a fence (a kernel that hands data from block to block through a flag is
// reported). Not modelled: timing, caches, independent progress of lanes between collectives.
//
// runtime.h is the seam: the headers here are compiled into the kernels, the .cpp files are not
// instrumented in any build.
#pragma once

#include "simt/vocabulary.h"
#include "simt/runtime.h"
#include "simt/collectives.h"
#include "simt/atomics.h"
#include "simt/math.h"
#include "simt/launch.h"
