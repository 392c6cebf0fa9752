// moge::route, forward, where top-k compares scores and not logits: another function than softmax,
// a bias, ranges of experts. Included inside an anonymous namespace (see kernels_*.cpp).

// A tile of x + noise becomes f(x + noise), in place.
template <class V>
MOGE_INLINE void score_keys(typename V::Scalar* tile, int num_experts, ScoreFunction function,
                            Ahead<V, 0> next) {
  constexpr int W = V::kWidth;
  if (function != ScoreFunction::kSoftmax) {
    return with_function(function,
                         [&](auto f) { activate<V, decltype(f)::value>(tile, num_experts, next); });
  }
  auto maximum = V::set(-__builtin_inff());
  for (int64_t j = 0; j < num_experts; ++j) maximum = V::max(V::load(tile + j * W), maximum);
  const auto sum = exponentials<V, 0, false>(tile, num_experts, maximum, nullptr, next, nullptr);
  const auto inverse_sum = V::div(V::set(1), sum);
  for (int64_t j = 0; j < num_experts; ++j) {
    V::store(tile + j * W, V::mul(V::load(tile + j * W), inverse_sum));
  }
}

// Selects by the keys of `tile.selection`; the lanes of `suspects` with NaN as -inf.
template <class V>
MOGE_INLINE void select_keys(ForwardTile<V>& tile, unsigned suspects) {
  const RouteForward& a = tile.args;
  const int n = a.num_experts, k = a.top_k;
  const bool limited = a.wider.top_groups < a.wider.num_groups;
  if (limited) {
    close_ranges<V>(tile.selection, n, k, a.wider, suspects, tile.ranks, tile.row, tile.order,
                    tile.values, tile.indices);
  }
  select_tile<V>(tile.selection, n, k, tile.row, tile.order, tile.values, tile.indices);
  if (!limited) return select_suspects<V>(tile, suspects);
  for (int lane = 0; suspects >> lane; ++lane) {
    if (suspects >> lane & 1) {
      select_lane_of_ranges<V>(tile.selection, n, k, a.wider, lane, tile.row, tile.order,
                               tile.values, tile.indices);
    }
  }
}

// Gate weights from `values`, the scores of the k selected experts but for `factor`, in place.
template <class V>
MOGE_INLINE void weigh_scores(ForwardTile<V>& tile, typename V::Reg factor) {
  constexpr int W = V::kWidth;
  const int k = tile.args.top_k;
  auto scale = V::mul(V::set(typename V::Scalar(tile.args.wider.scale)), factor);
  if (tile.args.renormalize) {
    auto sum = V::set(0);
    for (int i = 0; i < k; ++i) sum = V::add(sum, V::load(tile.values + i * W));
    scale = V::div(scale, V::add(sum, V::set(typename V::Scalar(kSumEps))));
  }
  for (int i = 0; i < k; ++i) {
    V::store(tile.values + i * W, V::mul(V::load(tile.values + i * W), scale));
  }
}

template <class V>
struct TileScores {
  typename V::Reg inverse_sum;  // importance sums the tile times this
  typename V::Reg squared;      // as in sum_norms
};

// The logits of a tile become e^(x - maximum), or f(x) for another function than softmax, in place
// and filtered.
template <class V>
MOGE_INLINE TileScores<V> score_tile(ForwardTile<V>& tile, typename V::Reg maximum,
                                     Ahead<V, 0> next) {
  using Reg = typename V::Reg;
  const RouteForward& a = tile.args;
  const int n = a.num_experts;
  const bool unit = tile.stencil && a.groups->unit_energy;
  TileScores<V> result;
  if (a.wider.score_function == ScoreFunction::kSoftmax) {
    Reg sum, energy;
    Stencil<V>::dispatch(tile.stencil, [&](auto h) {
      constexpr int H = decltype(h)::value;
      sum = unit ? exponentials<V, H, true>(tile.logits, n, maximum, tile.stencil, next, &energy)
                 : exponentials<V, H, false>(tile.logits, n, maximum, tile.stencil, next, nullptr);
    });
    result.inverse_sum = V::div(V::set(1), sum);
    result.squared = unit ? reciprocal<V>(energy) : V::mul(result.inverse_sum, result.inverse_sum);
    return result;
  }
  with_function(a.wider.score_function, [&](auto function) {
    constexpr ScoreFunction kF = decltype(function)::value;
    const Reg sum = activate<V, kF>(tile.logits, n, next);
    result.inverse_sum = V::div(V::set(1), V::add(sum, V::set(typename V::Scalar(kSumEps))));
    result.squared = V::set(1);
    const Reg factor = energy_factor<V>(score_of<V, kF>(maximum).value);
    if (!tile.stencil) return;
    Stencil<V>::dispatch(tile.stencil, [&](auto h) {
      constexpr int H = decltype(h)::value;
      if (unit) {
        result.squared =
            reciprocal<V>(filter_squares<V, H, true>(*tile.stencil, tile.logits, factor));
      } else {
        filter_squares<V, H, false>(*tile.stencil, tile.logits, factor);
      }
    });
  });
  return result;
}

template <class V, class In>
static __attribute__((noinline)) void route_wide_tile(ForwardTile<V>& tile, int64_t token,
                                                      int64_t num_rows, ChunkSums& sums,
                                                      int64_t* load, int64_t* first_load) {
  using Scalar = typename V::Scalar;
  using Reg = typename V::Reg;
  constexpr int W = V::kWidth;
  const RouteForward& a = tile.args;
  const int n = a.num_experts;
  const In* rows = static_cast<const In*>(a.logits) + token * n;
  const Scalar* noise = a.noise ? static_cast<const Scalar*>(a.noise) + token * n : nullptr;
  const Scalar* bias = static_cast<const Scalar*>(a.wider.bias);
  const bool softmax = a.wider.score_function == ScoreFunction::kSoftmax;
  RowScan<V> scan = load_rows<V, In>(tile, rows, noise, num_rows);
  unsigned suspects = V::nan_bits(scan.finite);
  BadLanes bad = {0, 0};
  if (suspects) {
    bad = repair_lanes<V>(tile, suspects, token, num_rows, sums);
    scan.maximum = maximum_of<V>(scan.maximum, bad.dropped);
  }
  if (!tile.finite_bias) suspects = (1u << W) - 1;
  const auto next = Ahead<V, 0>::of(num_rows > W ? rows + W * n : rows);
  if (noise) score_keys<V>(tile.selection, n, a.wider.score_function, next);
  const TileScores<V> scores = score_tile<V>(tile, scan.maximum, next);
  Reg inverse_sum;
  const Reg counted = write_stats<V, false>(tile, scan.maximum, scores.inverse_sum, bad, token,
                                            num_rows, &inverse_sum);
  const Reg factor = softmax ? inverse_sum : V::set(1);
  for (int64_t j = 0; j < n; ++j) {
    Scalar* key = tile.selection + j * W;
    Reg value = noise ? V::load(key) : V::mul(V::load(tile.logits + j * W), factor);
    if (bias) value = V::add(value, V::set(bias[j]));
    V::store(key, value);
  }
  select_keys<V>(tile, suspects);
  for (int i = 0; i < a.top_k * W; ++i) {
    const int expert = int(tile.indices[i]), lane = i % W;
    if (softmax && a.renormalize) {  // from memory: the tile's logits have become scores
      const int64_t row = lane < num_rows ? lane : num_rows - 1;
      tile.values[i] = bad.dropped >> lane & 1 ? 0 : Scalar(to_scalar(rows[row * n + expert]));
    } else {
      tile.values[i] = tile.logits[expert * W + lane];
    }
  }
  if (softmax && a.renormalize) {
    weigh_logits<V, false>(tile, false, scan.maximum, inverse_sum);
  } else {
    weigh_scores<V>(tile, factor);
  }
  write_choices<V, false>(tile, bad.dead, token, num_rows, load, first_load);
  add_importance<V>(tile.logits, n, counted, tile.lanes + token % kLanes);
  if (tile.stencil) {  // rows without scores make the loss NaN
    const Reg usable = V::fma(inverse_sum, V::set(0), V::set(1));
    add_norms<V, false>(tile, V::mul(scores.squared, usable), token, num_rows, sums);
  }
}
