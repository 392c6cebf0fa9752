// What the forward kernels of moge::route keep of a tile, and what they do with rows that are not
// finite. Included inside an anonymous namespace (see kernels_*.cpp).

// Whether top-k compares scores, and not logits: then they are computed first (route_wide.h).
MOGE_INLINE bool compares_scores(const RouteForward& a) {
  return a.wider.score_function != ScoreFunction::kSoftmax || a.wider.bias ||
         a.wider.top_groups < a.wider.num_groups;
}

// Whether there is no mask and no scale of the weights: the kernels then have none of what those
// cost.
MOGE_INLINE bool is_plain(const Wider& wider) { return !wider.mask && wider.scale == 1; }

template <class V>
struct ForwardTile {
  using Scalar = typename V::Scalar;
  using Reg = typename V::Reg;
  static constexpr int W = V::kWidth;

  const RouteForward& args;
  Scratch scratch;
  Scalar *logits, *selection;  // tiles; the same one where logits are compared and have no noise
  Scalar *values, *indices;    // (k, W): logits of the chosen experts (then weights), and which
  Scalar* row;                 // one lane of a tile
  int32_t* order;
  Scalar* lanes;  // (N, 16): importance since the last flush
  Scalar* ranks;  // (num_groups, W)
  bool finite_bias = true;
  Stencil<V>* stencil = nullptr;

  static size_t bytes(const RouteForward& a) {
    const size_t n = size_t(a.num_experts), k = size_t(a.top_k);
    const size_t ranks = size_t(a.wider.num_groups) * W;
    return sizeof(Scalar) * (2 * n * W + 2 * k * W + n + n * kLanes + ranks) + 4 * k + 8 * 64 +
           (a.groups ? Stencil<V>::scratch_bytes(*a.groups) : 0);
  }
  explicit ForwardTile(const RouteForward& a) : args(a), scratch(bytes(a)) {
    const size_t n = size_t(a.num_experts), k = size_t(a.top_k);
    logits = scratch.take<Scalar>(n * W);
    selection = a.noise || compares_scores(a) ? scratch.take<Scalar>(n * W) : logits;
    values = scratch.take<Scalar>(k * W);
    indices = scratch.take<Scalar>(k * W);
    row = scratch.take<Scalar>(n);
    order = scratch.take<int32_t>(k);
    lanes = scratch.take<Scalar>(n * kLanes);
    ranks = scratch.take<Scalar>(size_t(a.wider.num_groups) * W);
    const Scalar* bias = static_cast<const Scalar*>(a.wider.bias);
    for (size_t j = 0; bias && j < n; ++j) finite_bias &= __builtin_isfinite(bias[j]) != 0;
  }
  inline __attribute__((always_inline)) bool counts(int64_t token) const {
    return !args.wider.mask || args.wider.mask[token];
  }
};

struct BadLanes {
  unsigned dead;     // rows without scores: their softmax is NaN, or a logit is NaN or +inf
  unsigned dropped;  // masked rows that are routed as rows of zeros
};

// Tests the lanes of `suspects` one by one and notes rows that are not finite. A masked row that
// could not be routed becomes one of zeros, and so does its noise; in the lanes past the end, which
// hold the last row, too: they enter the sums times 0, which NaN survives.
template <class V>
static __attribute__((noinline)) BadLanes repair_lanes(ForwardTile<V>& tile, unsigned suspects,
                                                       int64_t token, int64_t num_rows,
                                                       ChunkSums& sums) {
  using Scalar = typename V::Scalar;
  constexpr int W = V::kWidth;
  const RouteForward& a = tile.args;
  const bool softmax = a.wider.score_function == ScoreFunction::kSoftmax;
  BadLanes lanes = {0, 0};
  for (int lane = 0; lane < W; ++lane) {
    if (!(suspects >> lane & 1)) continue;
    const int64_t row = token + (lane < num_rows ? lane : num_rows - 1);
    const Scalar* noise = static_cast<const Scalar*>(a.noise);
    if (noise) noise += row * a.num_experts;
    bool bad = false, dead = false, all_masked = true, bad_noise = false;
    for (int j = 0; j < a.num_experts; ++j) {
      const Scalar x = tile.logits[j * W + lane];
      bad |= !__builtin_isfinite(x);
      dead |= x != x || x == __builtin_inff();
      all_masked &= x == -__builtin_inff();
      bad_noise |= noise && !__builtin_isfinite(noise[j]);
    }
    const bool unroutable = dead || all_masked;
    dead |= all_masked && softmax;
    if (tile.counts(row)) {
      if (bad && sums.bad_logits_row < 0) sums.bad_logits_row = row;
      if (bad_noise && sums.bad_noise_row < 0) sums.bad_noise_row = row;
      if (dead) lanes.dead |= 1u << lane;
      continue;
    }
    const bool dropped = a.wider.strict ? bad : unroutable;
    if (dropped) lanes.dropped |= 1u << lane;
    for (int j = 0; j < a.num_experts; ++j) {
      Scalar& x = tile.logits[j * W + lane];
      if (dropped) x = 0;
      tile.selection[j * W + lane] = noise && !bad_noise ? x + noise[j] : x;
    }
  }
  return lanes;
}

// `maximum` with 0 in the lanes of `dropped`, whose logits have become zeros.
template <class V>
MOGE_INLINE typename V::Reg maximum_of(typename V::Reg maximum, unsigned dropped) {
  typename V::Scalar lanes[V::kWidth] __attribute__((aligned(64)));
  V::store(lanes, maximum);
  for (int lane = 0; dropped >> lane; ++lane) {
    if (dropped >> lane & 1) lanes[lane] = 0;
  }
  return V::load(lanes);
}

// Selects for the lanes of `suspects` with NaN as -inf.
template <class V>
static __attribute__((noinline)) void select_suspects(ForwardTile<V>& tile, unsigned suspects) {
  const RouteForward& a = tile.args;
  for (int lane = 0; suspects >> lane; ++lane) {
    if (suspects >> lane & 1) {
      select_lane<V>(tile.selection, a.num_experts, a.top_k, lane, tile.row, tile.order,
                     tile.values, tile.indices);
    }
  }
}
