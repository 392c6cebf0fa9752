// moge::route, forward. Included inside an anonymous namespace (see kernels_*.cpp).

template <class V>
struct ForwardTile {
  using Scalar = typename V::Scalar;
  using Reg = typename V::Reg;
  static constexpr int W = V::kWidth;

  const RouteForward& args;
  Scratch scratch;
  Scalar *logits, *selection;  // tiles; the same one without noise
  Scalar *values, *indices;    // (k, W): logits of the chosen experts (then weights), and which
  Scalar* row;                 // one lane of a tile
  int32_t* order;
  Scalar* lanes;  // (N, 16): importance since the last flush
  Stencil<V>* stencil = nullptr;

  static size_t bytes(const RouteForward& a) {
    const size_t n = size_t(a.num_experts), k = size_t(a.top_k);
    return sizeof(Scalar) * (2 * n * W + 2 * k * W + n + n * kLanes) + 4 * k + 7 * 64 +
           (a.groups ? Stencil<V>::scratch_bytes(*a.groups) : 0);
  }
  explicit ForwardTile(const RouteForward& a) : args(a), scratch(bytes(a)) {
    const size_t n = size_t(a.num_experts), k = size_t(a.top_k);
    logits = scratch.take<Scalar>(n * W);
    selection = a.noise ? scratch.take<Scalar>(n * W) : logits;
    values = scratch.take<Scalar>(k * W);
    indices = scratch.take<Scalar>(k * W);
    row = scratch.take<Scalar>(n);
    order = scratch.take<int32_t>(k);
    lanes = scratch.take<Scalar>(n * kLanes);
  }
};

// Tests the lanes of `suspects` one by one: notes rows that are not finite, selects for them with
// NaN as -inf, and returns a mask of the rows whose softmax is NaN.
template <class V>
static __attribute__((noinline)) unsigned repair_lanes(ForwardTile<V>& tile, unsigned suspects,
                                                       int64_t token, int64_t num_rows,
                                                       ChunkSums& sums) {
  using Scalar = typename V::Scalar;
  constexpr int W = V::kWidth;
  const RouteForward& a = tile.args;
  const Scalar* noise = static_cast<const Scalar*>(a.noise);
  unsigned dead = 0;
  for (int lane = 0; lane < W && lane < num_rows; ++lane) {
    if (!(suspects >> lane & 1)) continue;
    bool bad = false, unusable = false, all_masked = true, bad_noise = false;
    for (int j = 0; j < a.num_experts; ++j) {
      const Scalar x = tile.logits[j * W + lane];
      bad |= !__builtin_isfinite(x);
      unusable |= x != x || x == __builtin_inff();
      all_masked &= x == -__builtin_inff();
      bad_noise |= noise && !__builtin_isfinite(noise[(token + lane) * a.num_experts + j]);
    }
    if (bad && sums.bad_logits_row < 0) sums.bad_logits_row = token + lane;
    if (bad_noise && sums.bad_noise_row < 0) sums.bad_noise_row = token + lane;
    if (unusable || all_masked) dead |= 1u << lane;
    select_lane<V>(tile.selection, a.num_experts, a.top_k, lane, tile.row, tile.order, tile.values,
                   tile.indices);
  }
  return dead;
}

// Gate weights of the k selected experts, written with their indices and counted in `load`.
template <class V>
MOGE_INLINE void write_choices(ForwardTile<V>& tile, typename V::Reg maximum,
                               typename V::Reg inverse_sum, unsigned dead, int64_t token,
                               int64_t num_rows, int64_t* load, int64_t* first_load) {
  using Scalar = typename V::Scalar;
  using Reg = typename V::Reg;
  constexpr int W = V::kWidth;
  const RouteForward& a = tile.args;
  const int k = a.top_k;
  if (a.renormalize) {  // Routing 3: a softmax of the kept logits
    Reg top = V::load(tile.values);
    for (int i = 1; i < k && a.noise; ++i) top = V::max(top, V::load(tile.values + i * W));
    Reg sum = V::set(0);
    for (int i = 0; i < k; ++i) {
      const Reg e = exp_nonpositive<V>(V::sub(V::load(tile.values + i * W), top));
      sum = V::add(sum, e);
      V::store(tile.values + i * W, e);
    }
    const Reg scale = V::div(V::set(1), sum);
    for (int i = 0; i < k; ++i) {
      V::store(tile.values + i * W, V::mul(V::load(tile.values + i * W), scale));
    }
  } else {
    for (int i = 0; i < k; ++i) {
      const Reg e = exp_nonpositive<V>(V::sub(V::load(tile.values + i * W), maximum));
      V::store(tile.values + i * W, V::mul(e, inverse_sum));
    }
  }
  Scalar* weights = static_cast<Scalar*>(a.weights) + token * k;
  int64_t* experts = a.experts + token * k;
  for (int lane = 0; lane < W && lane < num_rows; ++lane) {
    const bool usable = !(dead >> lane & 1);
    ++first_load[int(tile.indices[lane])];
    for (int i = 0; i < k; ++i) {
      const int expert = int(tile.indices[i * W + lane]);
      *weights++ = usable ? tile.values[i * W + lane] : Scalar(__builtin_nanf(""));
      *experts++ = expert;
      ++load[expert];
    }
  }
}

template <class V>
struct RowScan {
  typename V::Reg maximum;  // of the logits
  typename V::Reg finite;   // 0, or NaN where a selection value is infinite or NaN
};

// Loads the logits and, where there is noise, their sum with it. A function of its own, so that
// what it carries from expert to expert stays in registers.
template <class V, class In>
static __attribute__((noinline)) RowScan<V> load_rows(const ForwardTile<V>& tile, const In* rows,
                                                      const typename V::Scalar* noise,
                                                      int64_t num_rows) {
  using Reg = typename V::Reg;
  const int n = tile.args.num_experts;
  Reg maximum = V::set(-__builtin_inff()), finite = V::set(0);
  load_tile<V>(rows, num_rows, n, tile.logits, [&](int64_t, Reg x) {
    maximum = V::max(x, maximum);
    finite = V::fma(x, V::set(0), finite);  // NaN from the first inf or NaN on
    return x;
  });
  if (noise) {
    finite = V::set(0);
    load_tile<V>(noise, num_rows, n, tile.selection, [&](int64_t j, Reg y) {
      const Reg selected = V::add(V::load(tile.logits + j * V::kWidth), y);
      finite = V::fma(selected, V::set(0), finite);
      return selected;
    });
  }
  return {maximum, finite};
}

// e^(x - maximum) of the tile, in place and filtered; returns the sums.
template <class V, int H>
static __attribute__((noinline)) typename V::Reg exponentials(typename V::Scalar* tile,
                                                              int num_experts,
                                                              typename V::Reg maximum,
                                                              const Stencil<V>* stencil,
                                                              Ahead<V, 0> next) {
  using Reg = typename V::Reg;
  Reg sums[4];  // expert j in chain j mod 4: short chains round less than one long one
  for (auto& sum : sums) sum = V::set(0);
  exponentiate<V, H>(tile, num_experts, maximum, stencil, next, [&](Reg e) {
    const Reg sum = V::add(sums[0], e);
    for (int i = 0; i < 3; ++i) sums[i] = sums[i + 1];
    sums[3] = sum;
  });
  return V::add(V::add(sums[0], sums[1]), V::add(sums[2], sums[3]));
}

// lanes += z = e / sum.
template <class V>
static __attribute__((noinline)) void add_importance(const typename V::Scalar* tile,
                                                     int num_experts, typename V::Reg inverse_sum,
                                                     typename V::Scalar* lanes) {
  for (int j = 0; j < num_experts; ++j, tile += V::kWidth, lanes += kLanes) {
    V::store(lanes, V::fma(V::load(tile), inverse_sum, V::load(lanes)));
  }
}

// Adds the 16 lanes of every expert to `sums` in float64, in a fixed order, and clears them.
template <class Scalar>
static __attribute__((noinline)) void flush_lanes(Scalar* lanes, int num_experts, double* sums) {
  for (int j = 0; j < num_experts; ++j, lanes += kLanes) {
    double part[kLanes / 2];
    for (int i = 0; i < 8; ++i) part[i] = double(lanes[i]) + double(lanes[i + 8]);
    for (int i = 0; i < 4; ++i) part[i] += part[i + 4];
    sums[j] += (part[0] + part[2]) + (part[1] + part[3]);
    for (int i = 0; i < kLanes; ++i) lanes[i] = 0;
  }
}

template <class V, class In>
MOGE_INLINE void route_tile(ForwardTile<V>& tile, int64_t token, int64_t num_rows, ChunkSums& sums,
                            int64_t* load, int64_t* first_load) {
  using Scalar = typename V::Scalar;
  using Reg = typename V::Reg;
  constexpr int W = V::kWidth;
  const RouteForward& a = tile.args;
  const int n = a.num_experts;
  const In* rows = static_cast<const In*>(a.logits) + token * n;
  const Scalar* noise = a.noise ? static_cast<const Scalar*>(a.noise) + token * n : nullptr;
  const RowScan<V> scan = load_rows<V, In>(tile, rows, noise, num_rows);
  select_tile<V>(tile.selection, n, a.top_k, tile.row, tile.order, tile.values, tile.indices);
  const unsigned suspects = V::nan_bits(scan.finite);
  const unsigned dead = suspects ? repair_lanes<V>(tile, suspects, token, num_rows, sums) : 0u;

  for (int i = 0; a.noise && i < a.top_k * W; ++i) {  // weights are of the logits alone
    tile.values[i] = tile.logits[int(tile.indices[i]) * W + i % W];
  }
  const auto next = Ahead<V, 0>::of(num_rows > W ? rows + W * n : rows);
  Reg sum;
  Stencil<V>::dispatch(tile.stencil, [&](auto h) {
    sum = exponentials<V, decltype(h)::value>(tile.logits, n, scan.maximum, tile.stencil, next);
  });
  Scalar stats[2][W] __attribute__((aligned(64)));
  V::store(stats[0], scan.maximum);
  V::store(stats[1], V::div(V::set(1), sum));
  for (int lane = 0; dead >> lane; ++lane) {
    if (dead >> lane & 1) stats[1][lane] = __builtin_nanf("");
  }
  write_choices<V>(tile, scan.maximum, V::load(stats[1]), dead, token, num_rows, load, first_load);
  Scalar* row_stats = static_cast<Scalar*>(a.row_stats) + 2 * token;
  for (int lane = 0; lane < W && lane < num_rows; ++lane) {
    row_stats[2 * lane] = stats[0][lane];
    row_stats[2 * lane + 1] = stats[1][lane];
  }
  for (int64_t lane = num_rows; lane < W; ++lane) stats[1][lane] = 0;  // past the end: no score
  const Reg inverse_sum = V::load(stats[1]);
  add_importance<V>(tile.logits, n, inverse_sum, tile.lanes + token % kLanes);
  if (tile.stencil) {
    double norms[W] __attribute__((aligned(64)));
    Stencil<V>::dispatch(tile.stencil, [&](auto h) {
      sum_norms<V, decltype(h)::value>(*tile.stencil, inverse_sum, norms);
    });
    for (int lane = 0; lane < W && lane < num_rows; ++lane) sums.loss += norms[lane];
  }
}

template <class V, class In>
static void route_forward_chunks(const RouteForward& a, int64_t begin, int64_t end) {
  constexpr int64_t kFlushTokens = 64 * kLanes;  // float32 sums of at most 64 terms
  FlushSubnormals flush;
  const int n = a.num_experts;
  ForwardTile<V> tile(a);
  alignas(Stencil<V>) char storage[sizeof(Stencil<V>)];
  if (a.groups) tile.stencil = new (storage) Stencil<V>(*a.groups, tile.scratch);
  for (int i = 0; i < n * kLanes; ++i) tile.lanes[i] = 0;
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    ChunkSums sums = {0.0, -1, -1};
    double* importance = a.importance + chunk * n;
    int64_t* load = a.load + chunk * n;
    int64_t* first_load = a.first_load + chunk * n;
    for (int j = 0; j < n; ++j) {
      importance[j] = 0;
      load[j] = 0;
      first_load[j] = 0;
    }
    const int64_t first = chunk * a.chunk_tokens;
    const int64_t rest = a.num_tokens - first;
    const int64_t last = first + (rest < a.chunk_tokens ? rest : a.chunk_tokens);
    for (int64_t token = first; token < last; token += V::kWidth) {
      route_tile<V, In>(tile, token, last - token, sums, load, first_load);
      const int64_t next = token + V::kWidth;
      if ((next - first) % kFlushTokens == 0 || next >= last)
        flush_lanes(tile.lanes, n, importance);
    }
    a.sums[chunk] = sums;
  }
}
