// moge::route, backward, for another score function than softmax, and the chunks of tokens of both.
// Included inside an anonymous namespace (see kernels_*.cpp).

// Gradient of the logits through the k weights, added to `grad`: with q = 1 / (the sum of the kept
// scores + 1e-20) and s = sum_j gw_j w_j it is f'(x_i) q (scale gw_i - s), or f'(x_i) scale gw_i
// where the weights are not renormalised.
template <class V>
MOGE_INLINE bool add_score_weight_gradients(const BackwardTile<V>& tile, int64_t token,
                                            int64_t num_rows) {
  using Scalar = typename V::Scalar;
  constexpr int W = V::kWidth;
  const RouteBackward& a = tile.args;
  const int k = a.top_k;
  const Scalar* weights = static_cast<const Scalar*>(a.weights) + token * k;
  const Scalar* upstream = static_cast<const Scalar*>(a.grad_weights) + token * k;
  const int64_t* experts = a.experts + token * k;
  const auto scale = Scalar(a.wider.scale);
  bool valid = true;
  for (int i = 0; i < k * W && i < k * num_rows; ++i) {
    valid &= uint64_t(experts[i]) < uint64_t(a.num_experts);
  }
  if (!valid) return false;
  for (int lane = 0; lane < W && lane < num_rows; ++lane) {
    Scalar sum = 0, mean = 0;
    for (int i = 0; i < k && a.renormalize; ++i) {
      sum += tile.scores[experts[i] * W + lane];
      mean += weights[i] * upstream[i];
    }
    const Scalar inverse = a.renormalize ? 1 / (sum + Scalar(kSumEps)) : Scalar(1);
    for (int i = 0; i < k; ++i) {
      const int64_t at = experts[i] * W + lane;
      tile.grad[at] += tile.slopes[at] * (inverse * (scale * upstream[i] - mean));
    }
    weights += k;
    upstream += k;
    experts += k;
  }
  return true;
}

// dL/dz of the group norms, in `grad`; rows without scores (1 / sum is NaN) make it NaN.
template <class V, ScoreFunction kF>
MOGE_INLINE void score_norm_gradient(const BackwardTile<V>& tile, typename V::Reg maximum,
                                     typename V::Reg inverse_sum, typename V::Reg norm_grad) {
  using Reg = typename V::Reg;
  const Reg usable = V::fma(inverse_sum, V::set(0), V::set(1));
  const Reg factor = energy_factor<V>(score_of<V, kF>(maximum).value);
  Stencil<V>::dispatch(tile.stencil, [&](auto h) {
    constexpr int H = decltype(h)::value;
    if (tile.args.groups->unit_energy) {
      const Reg energy = filter_squares<V, H, true>(*tile.stencil, tile.scores, factor);
      norm_gradient<V, H, Energy::kScaledUnit>(*tile.stencil, tile.scores,
                                               V::mul(reciprocal<V>(energy), usable), factor,
                                               norm_grad, tile.grad);
    } else {
      filter_squares<V, H, false>(*tile.stencil, tile.scores, factor);
      norm_gradient<V, H, Energy::kAsItIs>(*tile.stencil, tile.scores, usable, factor, norm_grad,
                                           tile.grad);
    }
  });
}

// With r = 1 / (sum z + 1e-20) importance sums z r: dL/dz_j = r (u_j - r sum_i u_i z_i).
template <class V, class In>
static __attribute__((noinline)) bool scores_backward_tile(BackwardTile<V>& tile, int64_t token,
                                                           int64_t num_rows) {
  using Scalar = typename V::Scalar;
  using Reg = typename V::Reg;
  constexpr int W = V::kWidth;
  const RouteBackward& a = tile.args;
  const int n = a.num_experts;
  const In* rows = static_cast<const In*>(a.logits) + token * n;
  In* grad_rows = static_cast<In*>(a.grad_logits) + token * n;
  load_tile<V>(rows, num_rows, n, tile.scores, [](int64_t, Reg x) { return x; });
  const RowStats<V> stats(static_cast<const Scalar*>(a.row_stats) + 2 * token, num_rows);
  const Reg inverse_sum = V::load(stats.inverse_sum);
  const Reg counted = counted_lanes<V, false>(a, token, num_rows, inverse_sum);
  const auto result = Ahead<V, 1>::of(grad_rows);
  with_function(a.wider.score_function, [&](auto function) {
    constexpr ScoreFunction kF = decltype(function)::value;
    activate_with_slopes<V, kF>(tile.scores, tile.slopes, n, result);
    if (a.groups) {
      score_norm_gradient<V, kF>(
          tile, V::load(stats.maximum), inverse_sum,
          counted_lanes<V, false>(a, token, num_rows, V::set(Scalar(a.norm_grad))));
    }
  });
  const Scalar* upstream = static_cast<const Scalar*>(a.grad_importance);
  Reg dot = V::set(0);
  for (int64_t j = 0; upstream && j < n; ++j) {
    dot = V::fma(V::set(upstream[j]), V::load(tile.scores + j * W), dot);
  }
  dot = V::mul(dot, counted);
  for (int64_t j = 0; j < n; ++j) {
    Reg grad = a.groups ? V::load(tile.grad + j * W) : V::set(0);
    if (upstream) grad = V::fma(V::sub(V::set(upstream[j]), dot), counted, grad);
    V::store(tile.grad + j * W, V::mul(V::load(tile.slopes + j * W), grad));
  }
  const bool valid = !a.grad_weights || add_score_weight_gradients<V>(tile, token, num_rows);
  store_tile<V>([&](int64_t j) { return V::load(tile.grad + j * W); }, num_rows, n, grad_rows);
  clear_dropped_rows<V>(a, token, num_rows, grad_rows);
  return valid;
}

template <class V, class In>
static void route_backward_chunks(const RouteBackward& a, int64_t begin, int64_t end) {
  FlushSubnormals flush;
  const bool softmax = a.wider.score_function == ScoreFunction::kSoftmax;
  const bool plain = softmax && is_plain(a.wider);
  BackwardTile<V> tile(a);
  alignas(Stencil<V>) char storage[sizeof(Stencil<V>)];
  if (a.groups) tile.stencil = new (storage) Stencil<V>(*a.groups, tile.scratch);
  if constexpr (kFloat<V>) {
    if (fits_row_map(tile.stencil)) {
      with_row_map(*tile.stencil, [&](const auto& map) {
        map.clear(tile.squares);
        map.clear(tile.inverse);
      });
    }
  }
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    a.sums[chunk] = {0.0, -1, -1};
    const int64_t first = chunk * a.chunk_tokens;
    const int64_t rest = a.num_tokens - first;
    const int64_t last = first + (rest < a.chunk_tokens ? rest : a.chunk_tokens);
    for (int64_t token = first; token < last; token += V::kWidth) {
      const int64_t rows = last - token;
      const bool valid = plain     ? route_backward_tile<V, In, true>(tile, token, rows)
                         : softmax ? route_backward_tile<V, In, false>(tile, token, rows)
                                   : scores_backward_tile<V, In>(tile, token, rows);
      if (!valid) a.sums[chunk].bad_logits_row = token;
    }
  }
}
