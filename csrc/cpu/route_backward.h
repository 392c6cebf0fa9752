// moge::route, backward. Included inside an anonymous namespace (see kernels_*.cpp).

// Gradient of the logits through the k weights, added to `grad` in logit space, where expert e of
// lane l stands at e * expert_step + l * lane_step. With s = sum_j
// gw_j w_j it is w_i (gw_i - s) where the weights are a softmax of the kept logits (finite even
// where their scores underflow), else z_i gw_i here and - z_j s for every j, which is returned.
//
// kK: k, or 0 for any: the loops over few experts are then no loops.
template <class V, bool kPlain, int kK>
static bool add_gradients_of(const RouteBackward& a, int64_t token, int64_t num_rows,
                             typename V::Scalar* grad, int64_t expert_step, int64_t lane_step) {
  using Scalar = typename V::Scalar;
  constexpr int W = V::kWidth;
  const int k = kK > 0 ? kK : a.top_k;
  const Scalar* weights = static_cast<const Scalar*>(a.weights) + token * k;
  const Scalar* upstream = static_cast<const Scalar*>(a.grad_weights) + token * k;
  const int64_t* experts = a.experts + token * k;
  const Scalar inverse_scale = kPlain ? 1 : Scalar(1 / a.wider.scale);
  bool valid = true;
  for (int lane = 0; lane < W && lane < num_rows; ++lane) {
    Scalar mean = 0;
    for (int i = 0; i < k && a.renormalize; ++i) mean += weights[i] * upstream[i];
    if (!kPlain) mean *= inverse_scale;  // the weights are scaled, so is their mean
    for (int i = 0; i < k; ++i) {
      if (uint64_t(experts[i]) >= uint64_t(a.num_experts)) {
        valid = false;
        continue;
      }
      grad[experts[i] * expert_step + lane * lane_step] += weights[i] * (upstream[i] - mean);
    }
    weights += k;
    upstream += k;
    experts += k;
  }
  return valid;
}

template <class V, bool kPlain>
MOGE_INLINE bool add_weight_gradients(const RouteBackward& a, int64_t token, int64_t num_rows,
                                      typename V::Scalar* grad, int64_t expert_step,
                                      int64_t lane_step) {
  const auto add = a.top_k == 1   ? add_gradients_of<V, kPlain, 1>
                   : a.top_k == 2 ? add_gradients_of<V, kPlain, 2>
                                  : add_gradients_of<V, kPlain, 0>;
  return add(a, token, num_rows, grad, expert_step, lane_step);
}

// s of add_weight_gradients for weights that are not renormalised, a value a lane.
template <class V>
MOGE_INLINE typename V::Reg weight_dot(const RouteBackward& a, int64_t token, int64_t num_rows) {
  using Scalar = typename V::Scalar;
  const Scalar* weights = static_cast<const Scalar*>(a.weights) + token * a.top_k;
  const Scalar* upstream = static_cast<const Scalar*>(a.grad_weights) + token * a.top_k;
  Scalar dots[V::kWidth] __attribute__((aligned(64))) = {};
  for (int lane = 0; lane < V::kWidth && lane < num_rows; ++lane) {
    for (int i = 0; i < a.top_k; ++i) dots[lane] += *weights++ * *upstream++;
  }
  return V::load(dots);
}

template <class V>
struct BackwardTile {
  using Scalar = typename V::Scalar;
  static constexpr int W = V::kWidth;
  const RouteBackward& args;
  Scratch scratch;
  Scalar *scores, *grad, *slopes;                 // slopes: f' of another function than softmax
  Scalar *squares = nullptr, *inverse = nullptr;  // of row_backward.h
  Stencil<V>* stencil = nullptr;

  static size_t bytes(const RouteBackward& a) {
    const size_t tile = sizeof(Scalar) * size_t(a.num_experts) * W + 64;
    if (!a.groups) return 3 * tile;
    const size_t rows = sizeof(Scalar) * row_cells<V>(*a.groups) + 64;
    return 3 * tile + 2 * rows + Stencil<V>::scratch_bytes(*a.groups);
  }
  explicit BackwardTile(const RouteBackward& a) : args(a), scratch(bytes(a)) {
    scores = scratch.take<Scalar>(size_t(a.num_experts) * W);
    grad = scratch.take<Scalar>(size_t(a.num_experts) * W);
    slopes = scratch.take<Scalar>(size_t(a.num_experts) * W);
    if (a.groups) {
      squares = take_row_cells<V>(scratch, *a.groups);
      inverse = take_row_cells<V>(scratch, *a.groups);
    }
  }
};

// The saved row maxima and 1 / sums of a tile; lanes past the end repeat the last row's.
template <class V>
struct RowStats {
  typename V::Scalar maximum[V::kWidth] __attribute__((aligned(64)));
  typename V::Scalar inverse_sum[V::kWidth] __attribute__((aligned(64)));
  RowStats(const typename V::Scalar* saved, int64_t num_rows) {
    for (int lane = 0; lane < V::kWidth; ++lane) {
      const int64_t from = lane < num_rows ? lane : num_rows - 1;
      maximum[lane] = saved[2 * from];
      inverse_sum[lane] = saved[2 * from + 1];
    }
  }
};

// `value` in the lanes of tokens that count, 0 in the others.
template <class V, bool kPlain>
MOGE_INLINE typename V::Reg counted_lanes(const RouteBackward& a, int64_t token, int64_t num_rows,
                                          typename V::Reg value) {
  if (kPlain || !a.wider.mask) return value;
  typename V::Scalar lanes[V::kWidth] __attribute__((aligned(64)));
  V::store(lanes, value);
  for (int lane = 0; lane < V::kWidth && lane < num_rows; ++lane) {
    if (!a.wider.mask[token + lane]) lanes[lane] = 0;
  }
  return V::load(lanes);
}

// Masked rows that were routed as zeros have no gradient.
template <class V, class In>
MOGE_INLINE void clear_dropped_rows(const RouteBackward& a, int64_t token, int64_t num_rows,
                                    In* grad_rows) {
  const auto* stats = static_cast<const typename V::Scalar*>(a.row_stats) + 2 * token;
  for (int64_t row = 0; a.wider.mask && row < V::kWidth && row < num_rows; ++row) {
    if (a.wider.mask[token + row] || stats[2 * row] == stats[2 * row]) continue;
    clear_row(grad_rows + row * a.num_experts, a.num_experts);
  }
}

// e^(x - maximum) of the tile, in place and filtered; kUnit: returns the sums of its squares.
template <class V, int H, bool kUnit>
static __attribute__((noinline)) typename V::Reg recompute_exponentials(typename V::Scalar* tile,
                                                                        int num_experts,
                                                                        typename V::Reg maximum,
                                                                        const Stencil<V>* stencil,
                                                                        Ahead<V, 1> result) {
  auto energy = V::set(0);
  exponentiate<V, H>(tile, num_experts, maximum, stencil, result, [&](typename V::Reg e) {
    if constexpr (kUnit) energy = V::fma(e, e, energy);
  });
  return energy;
}

// Defined in row_backward.h, for maps that fit it.
template <class V, class In, bool kPlain>
static bool row_backward_tile(BackwardTile<V>& tile, int64_t token, int64_t num_rows);

// With z = e / sum and u = dL/dz / sum, the gradient through the scores is z (dL/dz - sum dL/dz z)
// = e (u - (sum u e) / sum): `scores` holds e, `grad` u, and nothing is multiplied out expert by
// expert.
//
// kPlain: no mask, weights that are not scaled.
template <class V, class In, bool kPlain>
MOGE_INLINE bool route_backward_tile(BackwardTile<V>& tile, int64_t token, int64_t num_rows) {
  using Scalar = typename V::Scalar;
  using Reg = typename V::Reg;
  constexpr int W = V::kWidth;
  if constexpr (kFloat<V>) {
    if (fits_row_map(tile.stencil)) return row_backward_tile<V, In, kPlain>(tile, token, num_rows);
  }
  const RouteBackward& a = tile.args;
  const int n = a.num_experts;
  const bool raw_weights = a.grad_weights && !a.renormalize;
  const bool unit = a.groups && a.groups->unit_energy;
  const bool through_scores = a.groups || a.grad_importance || raw_weights;
  const In* rows = static_cast<const In*>(a.logits) + token * n;
  In* grad_rows = static_cast<In*>(a.grad_logits) + token * n;
  Reg inverse_sum = V::set(0), dot = raw_weights ? weight_dot<V>(a, token, num_rows) : V::set(0);
  if (through_scores) {
    load_tile<V>(rows, num_rows, n, tile.scores, [](int64_t, Reg x) { return x; });
    const RowStats<V> stats(static_cast<const Scalar*>(a.row_stats) + 2 * token, num_rows);
    const Reg maximum = V::load(stats.maximum);
    inverse_sum = V::load(stats.inverse_sum);
    const auto result = Ahead<V, 1>::of(grad_rows);
    Stencil<V>::dispatch(tile.stencil, [&](auto h) {
      constexpr int H = decltype(h)::value;
      const Reg norm_grad =
          counted_lanes<V, kPlain>(a, token, num_rows, V::set(Scalar(a.norm_grad)));
      if (unit) {
        const Reg energy =
            recompute_exponentials<V, H, true>(tile.scores, n, maximum, tile.stencil, result);
        norm_gradient<V, H, Energy::kUnit>(*tile.stencil, tile.scores, reciprocal<V>(energy),
                                           V::set(1), norm_grad, tile.grad);
        return;
      }
      recompute_exponentials<V, H, false>(tile.scores, n, maximum, tile.stencil, result);
      if (a.groups) {
        dot = V::add(dot, norm_gradient<V, H, Energy::kAsItIs>(*tile.stencil, tile.scores,
                                                               V::mul(inverse_sum, inverse_sum),
                                                               V::set(1), norm_grad, tile.grad));
      }
    });
    if (a.grad_importance) {
      const Scalar* upstream = static_cast<const Scalar*>(a.grad_importance);
      const Reg counted = counted_lanes<V, kPlain>(a, token, num_rows, inverse_sum);
      for (int64_t j = 0; j < n; ++j) {
        const Reg value = V::mul(V::set(upstream[j]), counted);
        dot = V::fma(value, V::load(tile.scores + j * W), dot);
        V::store(tile.grad + j * W, a.groups ? V::add(V::load(tile.grad + j * W), value) : value);
      }
    }
    dot = V::sub(V::set(0), dot);
  }
  const bool has_grad = a.groups || a.grad_importance;
  auto next = Ahead<V, 0>::of(num_rows > W ? rows + W * n : rows);
  const auto gradient = [&](int64_t j) {
    next.ask();
    if (!through_scores) return V::set(0);
    const Reg upstream = has_grad ? V::load(tile.grad + j * W) : V::set(0);
    return V::mul(V::load(tile.scores + j * W), V::fma(dot, inverse_sum, upstream));
  };
  const auto add_weights = [&](Scalar* grad, int64_t expert_step, int64_t lane_step) {
    return !a.grad_weights ||
           add_weight_gradients<V, kPlain>(a, token, num_rows, grad, expert_step, lane_step);
  };
  bool valid;
  if constexpr (sizeof(In) == sizeof(Scalar)) {
    store_tile<V>(gradient, num_rows, n, grad_rows);
    valid = add_weights(grad_rows, 1, n);
  } else {  // rounded to In once, after every term was added
    for (int64_t j = 0; j < n; ++j) V::store(tile.grad + j * W, gradient(j));
    valid = add_weights(tile.grad, W, 1);
    store_tile<V>([&](int64_t j) { return V::load(tile.grad + j * W); }, num_rows, n, grad_rows);
  }
  if (!kPlain) clear_dropped_rows<V>(a, token, num_rows, grad_rows);
  return valid;
}
