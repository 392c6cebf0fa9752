// moge::route, forward, where top-k compares logits: softmax without bias or ranges. Included
// inside an anonymous namespace (see kernels_*.cpp).

// Gate weights from `values`, the logits of the k selected experts, in place.
template <class V, bool kPlain>
MOGE_INLINE void weigh_logits(ForwardTile<V>& tile, bool sorted, typename V::Reg maximum,
                              typename V::Reg inverse_sum) {
  using Reg = typename V::Reg;
  constexpr int W = V::kWidth;
  const int k = tile.args.top_k;
  const Reg factor = V::set(kPlain ? 1 : typename V::Scalar(tile.args.wider.scale));
  if (tile.args.renormalize) {  // Routing 3: a softmax of the kept logits
    Reg top = V::load(tile.values);
    for (int i = 1; i < k && !sorted; ++i) top = V::max(top, V::load(tile.values + i * W));
    Reg sum = V::set(0);
    for (int i = 0; i < k; ++i) {
      const Reg e = exp_nonpositive<V>(V::sub(V::load(tile.values + i * W), top));
      sum = V::add(sum, e);
      V::store(tile.values + i * W, e);
    }
    const Reg scale = V::div(factor, sum);
    for (int i = 0; i < k; ++i) {
      V::store(tile.values + i * W, V::mul(V::load(tile.values + i * W), scale));
    }
  } else {
    const Reg scale = kPlain ? inverse_sum : V::mul(factor, inverse_sum);
    for (int i = 0; i < k; ++i) {
      const Reg e = exp_nonpositive<V>(V::sub(V::load(tile.values + i * W), maximum));
      V::store(tile.values + i * W, V::mul(e, scale));
    }
  }
}

// The weights of rows without scores are NaN.
template <class V>
static __attribute__((noinline)) void spoil_weights(ForwardTile<V>& tile, unsigned dead) {
  for (int i = 0; i < tile.args.top_k * V::kWidth; ++i) {
    if (dead >> i % V::kWidth & 1) tile.values[i] = __builtin_nanf("");
  }
}

// Writes the weights with their indices and counts the choices in `load`. kK: k, or 0 for any.
template <class V, bool kPlain, int kK>
static void write_k_choices(const ForwardTile<V>& tile, int64_t token, int64_t num_rows,
                            int64_t* load, int64_t* first_load) {
  using Scalar = typename V::Scalar;
  constexpr int W = V::kWidth;
  const RouteForward& a = tile.args;
  const int k = kK > 0 ? kK : a.top_k;
  Scalar* weights = static_cast<Scalar*>(a.weights) + token * k;
  int64_t* experts = a.experts + token * k;
  for (int lane = 0; lane < W && lane < num_rows; ++lane) {
    const int64_t counted = kPlain || tile.counts(token + lane);
    const Scalar *index = tile.indices + lane, *value = tile.values + lane;
    first_load[int(*index)] += counted;
    for (int i = 0; i < k; ++i, index += W, value += W) {
      const int expert = int(*index);
      *weights++ = *value;
      *experts++ = expert;
      load[expert] += counted;
    }
  }
}

template <class V, bool kPlain>
MOGE_INLINE void write_choices(ForwardTile<V>& tile, unsigned dead, int64_t token, int64_t num_rows,
                               int64_t* load, int64_t* first_load) {
  if (dead) spoil_weights<V>(tile, dead);
  const int k = tile.args.top_k;
  const auto write = k == 1   ? write_k_choices<V, kPlain, 1>
                     : k == 2 ? write_k_choices<V, kPlain, 2>
                              : write_k_choices<V, kPlain, 0>;
  write(tile, token, num_rows, load, first_load);
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

// e^(x - maximum) of the tile, in place and filtered; returns their sums. kUnit: `energy` gets
// those of their squares.
template <class V, int H, bool kUnit>
static __attribute__((noinline)) typename V::Reg exponentials(
    typename V::Scalar* tile, int num_experts, typename V::Reg maximum, const Stencil<V>* stencil,
    Ahead<V, 0> next, typename V::Reg* energy) {
  Chains<V> sums;
  auto squares = V::set(0);
  exponentiate<V, H>(tile, num_experts, maximum, stencil, next, [&](typename V::Reg e) {
    sums.add(e);
    if constexpr (kUnit) squares = V::fma(e, e, squares);
  });
  if constexpr (kUnit) *energy = squares;
  return sums.total();
}

// lanes += z = e / sum.
template <class V>
static __attribute__((noinline)) void add_importance(const typename V::Scalar* tile,
                                                     int num_experts, typename V::Reg inverse_sum,
                                                     typename V::Scalar* lanes) {
#pragma GCC unroll 4
  for (int64_t j = 0; j < num_experts; ++j, tile += V::kWidth, lanes += kLanes) {
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

// Row maxima and inverse sums of a tile, written to row_stats. What is past the end, does not count
// or has no scores is marked in the lanes that are returned: 0, 0 and NaN in place of 1 / sum.
template <class V, bool kPlain>
MOGE_INLINE typename V::Reg write_stats(const ForwardTile<V>& tile, typename V::Reg maximum,
                                        typename V::Reg inverse_sum, BadLanes bad, int64_t token,
                                        int64_t num_rows, typename V::Reg* usable_inverse) {
  using Scalar = typename V::Scalar;
  constexpr int W = V::kWidth;
  Scalar stats[2][W] __attribute__((aligned(64)));
  V::store(stats[0], maximum);
  V::store(stats[1], inverse_sum);
  for (int lane = 0; bad.dead >> lane; ++lane) {
    if (bad.dead >> lane & 1) stats[1][lane] = __builtin_nanf("");
  }
  *usable_inverse = V::load(stats[1]);
  for (int lane = 0; !kPlain && bad.dropped >> lane; ++lane) {
    if (bad.dropped >> lane & 1) stats[0][lane] = __builtin_nanf("");
  }
  Scalar* row_stats = static_cast<Scalar*>(tile.args.row_stats) + 2 * token;
  for (int lane = 0; lane < W && lane < num_rows; ++lane) {
    row_stats[2 * lane] = stats[0][lane];
    row_stats[2 * lane + 1] = stats[1][lane];
  }
  for (int64_t lane = num_rows; lane < W; ++lane) stats[1][lane] = 0;
  for (int lane = 0; !kPlain && tile.args.wider.mask && lane < W && lane < num_rows; ++lane) {
    if (!tile.counts(token + lane)) stats[1][lane] = 0;
  }
  return V::load(stats[1]);
}

// Adds the group norms of the rows that count; `squared` as in sum_norms.
template <class V, bool kPlain>
MOGE_INLINE void add_norms(const ForwardTile<V>& tile, typename V::Reg squared, int64_t token,
                           int64_t num_rows, ChunkSums& sums) {
  constexpr int W = V::kWidth;
  double norms[W] __attribute__((aligned(64)));
  Stencil<V>::dispatch(tile.stencil, [&](auto h) {
    sum_norms<V, decltype(h)::value>(*tile.stencil, squared, norms);
  });
  for (int lane = 0; lane < W && lane < num_rows; ++lane) {
    if (kPlain || tile.counts(token + lane)) sums.loss += norms[lane];
  }
}

template <class V, class In, bool kPlain>
MOGE_INLINE void route_tile(ForwardTile<V>& tile, int64_t token, int64_t num_rows, ChunkSums& sums,
                            int64_t* load, int64_t* first_load) {
  using Scalar = typename V::Scalar;
  using Reg = typename V::Reg;
  constexpr int W = V::kWidth;
  const RouteForward& a = tile.args;
  const int n = a.num_experts;
  const In* rows = static_cast<const In*>(a.logits) + token * n;
  const Scalar* noise = a.noise ? static_cast<const Scalar*>(a.noise) + token * n : nullptr;
  RowScan<V> scan = load_rows<V, In>(tile, rows, noise, num_rows);
  BadLanes bad = {0, 0};
  const unsigned suspects = V::nan_bits(scan.finite);
  if (suspects) {
    bad = repair_lanes<V>(tile, suspects, token, num_rows, sums);
    if (!kPlain) scan.maximum = maximum_of<V>(scan.maximum, bad.dropped);
  }
  select_tile<V>(tile.selection, n, a.top_k, tile.row, tile.order, tile.values, tile.indices);
  if (suspects) select_suspects<V>(tile, suspects);

  for (int i = 0; a.noise && i < a.top_k * W; ++i) {  // weights are of the logits alone
    tile.values[i] = tile.logits[int(tile.indices[i]) * W + i % W];
  }
  const auto next = Ahead<V, 0>::of(num_rows > W ? rows + W * n : rows);
  const bool unit = tile.stencil && tile.stencil->groups.unit_energy;
  Reg sum, energy;
  Stencil<V>::dispatch(tile.stencil, [&](auto h) {
    constexpr int H = decltype(h)::value;
    if (!unit) {
      sum = exponentials<V, H, false>(tile.logits, n, scan.maximum, tile.stencil, next, nullptr);
    } else {
      sum = exponentials<V, H, true>(tile.logits, n, scan.maximum, tile.stencil, next, &energy);
    }
  });
  Reg inverse_sum;
  const Reg counted = write_stats<V, kPlain>(tile, scan.maximum, V::div(V::set(1), sum), bad, token,
                                             num_rows, &inverse_sum);
  weigh_logits<V, kPlain>(tile, !a.noise, scan.maximum, inverse_sum);
  write_choices<V, kPlain>(tile, bad.dead, token, num_rows, load, first_load);
  add_importance<V>(tile.logits, n, counted, tile.lanes + token % kLanes);
  if (tile.stencil) {
    const Reg squared = unit ? reciprocal<V>(energy) : V::mul(counted, counted);
    add_norms<V, kPlain>(tile, squared, token, num_rows, sums);
  }
}
