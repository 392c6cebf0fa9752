// moge::route, backward. Included inside an anonymous namespace (see kernels_*.cpp).

// Gradient of the logits through the k weights, added to `grad` in logit space, where expert e of
// lane l stands at e * expert_step + l * lane_step. With s = sum_j
// gw_j w_j it is w_i (gw_i - s) where the weights are a softmax of the kept logits (finite even
// where their scores underflow), else z_i gw_i here and - z_j s for every j, which is returned.
template <class V>
MOGE_INLINE bool add_weight_gradients(const RouteBackward& a, int64_t token, int64_t num_rows,
                                      typename V::Scalar* grad, int64_t expert_step,
                                      int64_t lane_step) {
  using Scalar = typename V::Scalar;
  constexpr int W = V::kWidth;
  const int k = a.top_k;
  const Scalar* weights = static_cast<const Scalar*>(a.weights) + token * k;
  const Scalar* upstream = static_cast<const Scalar*>(a.grad_weights) + token * k;
  const int64_t* experts = a.experts + token * k;
  bool valid = true;
  for (int lane = 0; lane < W && lane < num_rows; ++lane) {
    Scalar mean = 0;
    for (int i = 0; i < k && a.renormalize; ++i) mean += weights[i] * upstream[i];
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
  Scalar *scores, *grad;
  Stencil<V>* stencil = nullptr;

  static size_t bytes(const RouteBackward& a) {
    return sizeof(Scalar) * 2 * size_t(a.num_experts) * W + 2 * 64 +
           (a.groups ? Stencil<V>::scratch_bytes(*a.groups) : 0);
  }
  explicit BackwardTile(const RouteBackward& a) : args(a), scratch(bytes(a)) {
    scores = scratch.take<Scalar>(size_t(a.num_experts) * W);
    grad = scratch.take<Scalar>(size_t(a.num_experts) * W);
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

// e^(x - maximum) of the tile, in place and filtered.
template <class V, int H>
static __attribute__((noinline)) void recompute_exponentials(typename V::Scalar* tile,
                                                             int num_experts,
                                                             typename V::Reg maximum,
                                                             const Stencil<V>* stencil,
                                                             Ahead<V, 1> result) {
  exponentiate<V, H>(tile, num_experts, maximum, stencil, result, [](typename V::Reg) {});
}

// With z = e / sum and u = dL/dz / sum, the gradient through the scores is z (dL/dz - sum dL/dz z)
// = e (u - (sum u e) / sum): `scores` holds e, `grad` u, and nothing is multiplied out expert by
// expert.
template <class V, class In>
MOGE_INLINE bool route_backward_tile(BackwardTile<V>& tile, int64_t token, int64_t num_rows) {
  using Scalar = typename V::Scalar;
  using Reg = typename V::Reg;
  constexpr int W = V::kWidth;
  const RouteBackward& a = tile.args;
  const int n = a.num_experts;
  const bool raw_weights = a.grad_weights && !a.renormalize;
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
      recompute_exponentials<V, H>(tile.scores, n, maximum, tile.stencil, result);
      if (a.groups) {
        const auto norm_grad = Scalar(a.norm_grad);
        dot = V::add(dot, norm_gradient<V, H>(*tile.stencil, tile.scores, inverse_sum, norm_grad,
                                              tile.grad));
      }
    });
    if (a.grad_importance) {
      const Scalar* upstream = static_cast<const Scalar*>(a.grad_importance);
      for (int j = 0; j < n; ++j) {
        const Reg value = V::mul(V::set(upstream[j]), inverse_sum);
        dot = V::fma(value, V::load(tile.scores + j * W), dot);
        V::store(tile.grad + j * W, a.groups ? V::add(V::load(tile.grad + j * W), value) : value);
      }
    }
    dot = V::sub(V::set(0), dot);
  }
  const bool has_grad = a.groups || a.grad_importance;
  const auto next = Ahead<V, 0>::of(num_rows > W ? rows + W * n : rows);
  const auto gradient = [&](int64_t j) {
    next.ask(j);
    if (!through_scores) return V::set(0);
    const Reg upstream = has_grad ? V::load(tile.grad + j * W) : V::set(0);
    return V::mul(V::load(tile.scores + j * W), V::fma(dot, inverse_sum, upstream));
  };
  const auto add_weights = [&](Scalar* grad, int64_t expert_step, int64_t lane_step) {
    return !a.grad_weights ||
           add_weight_gradients<V>(a, token, num_rows, grad, expert_step, lane_step);
  };
  if constexpr (sizeof(In) == sizeof(Scalar)) {
    store_tile<V>(gradient, num_rows, n, grad_rows);
    return add_weights(grad_rows, 1, n);
  } else {  // rounded to In once, after every term was added
    for (int j = 0; j < n; ++j) V::store(tile.grad + j * W, gradient(j));
    const bool valid = add_weights(tile.grad, W, 1);
    store_tile<V>([&](int64_t j) { return V::load(tile.grad + j * W); }, num_rows, n, grad_rows);
    return valid;
  }
}

template <class V, class In>
static void route_backward_chunks(const RouteBackward& a, int64_t begin, int64_t end) {
  FlushSubnormals flush;
  BackwardTile<V> tile(a);
  alignas(Stencil<V>) char storage[sizeof(Stencil<V>)];
  if (a.groups) tile.stencil = new (storage) Stencil<V>(*a.groups, tile.scratch);
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    a.sums[chunk] = {0.0, -1, -1};
    const int64_t first = chunk * a.chunk_tokens;
    const int64_t rest = a.num_tokens - first;
    const int64_t last = first + (rest < a.chunk_tokens ? rest : a.chunk_tokens);
    for (int64_t token = first; token < last; token += V::kWidth) {
      if (!route_backward_tile<V, In>(tile, token, last - token))
        a.sums[chunk].bad_logits_row = token;
    }
  }
}
