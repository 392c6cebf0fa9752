// Torch-free driver of the routing kernels, run under callgrind: fixed inputs, one thread, every
// instruction between two marks counted. It links against the very objects the extension is made
// of and prints one line per measured region, in the order in which callgrind dumps them:
//
//   isa direction num_experts top_k group_size num_tokens      group_size "3u": with unit energy
//
// Instructions are exact where times are not: the same build gives the same count on any day. The
// inputs come from an integer generator, so that they are the same bits everywhere.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "kernels.h"

namespace {

constexpr int kTokens = 320;  // enough tiles that set-up is a small share of the count

struct Shape {
  int num_experts, top_k, group_size;
  bool unit_energy = false;
};

// Every N of the benchmark grid at k=2, h=3, then the ends of k and h at N=64, and unit energy.
constexpr Shape kShapes[] = {{8, 2, 2},   {16, 2, 3}, {32, 2, 3}, {64, 2, 3}, {128, 2, 3},
                             {256, 2, 3}, {64, 1, 3}, {64, 8, 3}, {64, 2, 5}, {64, 2, 3, true}};

// Sum of 4 uniform numbers, about normal with standard deviation 1.15: logits at initialisation.
std::vector<float> make_logits(int64_t count) {
  std::vector<float> values(count);
  uint64_t state = 0x9E3779B97F4A7C15ull;
  for (float& value : values) {
    float sum = 0;
    for (int i = 0; i < 4; ++i) {
      state = state * 6364136223846793005ull + 1442695040888963407ull;
      sum += static_cast<float>(state >> 40) * 0x1p-23f - 1.0f;
    }
    value = sum;
  }
  return values;
}

std::vector<double> gaussian_taps(int group_size) {
  std::vector<double> taps(group_size);
  double total = 0;
  for (int u = 0; u < group_size; ++u) {
    const double offset = u - group_size / 2;
    total += taps[u] = std::exp(-offset * offset / 2);
  }
  for (double& tap : taps) tap /= total;
  return taps;
}

// The map of docs/method.md: the factor pair closest to square, rows <= cols.
int map_rows(int num_experts) {
  int rows = 1;
  for (int r = 1; r * r <= num_experts; ++r)
    if (num_experts % r == 0) rows = r;
  return rows;
}

struct Problem {
  Shape shape;
  std::vector<float> logits, weights, row_stats, grad_weights, grad_logits;
  std::vector<int64_t> experts, load, first_load;
  std::vector<double> taps, importance;
  std::vector<moge::ChunkSums> sums;
  moge::Groups groups;
  moge::RouteForward forward;
  moge::RouteBackward backward;
  int64_t chunks;

  explicit Problem(Shape s) : shape(s) {
    const int64_t choices = int64_t{kTokens} * s.top_k;
    const int64_t chunk = moge::chunk_tokens(kTokens);
    chunks = (kTokens + chunk - 1) / chunk;
    logits = make_logits(int64_t{kTokens} * s.num_experts);
    grad_logits.resize(logits.size());
    weights.resize(choices);
    grad_weights.assign(choices, 0.5f);
    experts.resize(choices);
    row_stats.resize(2 * kTokens);
    sums.resize(chunks);
    importance.resize(chunks * s.num_experts);
    load.resize(chunks * s.num_experts);
    first_load.resize(load.size());
    taps = gaussian_taps(s.group_size);
    const int rows = map_rows(s.num_experts), cols = s.num_experts / rows, h = s.group_size;
    groups = {rows, cols, 1,           false,       rows - h + 1, cols - h + 1,
              h,    h,    taps.data(), taps.data(), s.unit_energy};
    forward = {
        moge::Dtype::kFloat32, logits.data(),    nullptr,     kTokens,           chunk,
        s.num_experts,         s.top_k,          true,        &groups,           weights.data(),
        experts.data(),        row_stats.data(), sums.data(), importance.data(), load.data(),
        first_load.data()};
    const double norm_grad = 1.0 / (double{kTokens} * groups.group_rows * groups.group_cols);
    backward = {moge::Dtype::kFloat32,
                logits.data(),
                row_stats.data(),
                weights.data(),
                experts.data(),
                kTokens,
                chunk,
                s.num_experts,
                s.top_k,
                true,
                &groups,
                norm_grad,
                grad_weights.data(),
                nullptr,
                grad_logits.data(),
                sums.data()};
  }
};

}  // namespace

// callgrind collects while this runs, by its name, and dumps when it returns. The empty asm keeps
// the calls from becoming jumps, after which callgrind would see it left before it began.
extern "C" __attribute__((noinline)) void moge_measured(const moge::KernelSet& set, Problem& p,
                                                        bool backward) {
  if (backward) {
    set.route_backward(p.backward, 0, p.chunks);
  } else {
    set.route_forward(p.forward, 0, p.chunks);
  }
  asm volatile("" ::: "memory");
}

int main() {
  std::vector<const moge::KernelSet*> sets = {&moge::kBaselineKernels};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    sets.push_back(&moge::kAvx2Kernels);
#endif
  for (const moge::KernelSet* set : sets) {
    for (const Shape& s : kShapes) {
      Problem problem(s);
      for (const bool backward : {false, true}) {
        moge_measured(*set, problem, backward);
        std::printf("%s %s %d %d %d%s %d\n", set->name, backward ? "backward" : "forward",
                    s.num_experts, s.top_k, s.group_size, s.unit_energy ? "u" : "", kTokens);
      }
    }
  }
}
