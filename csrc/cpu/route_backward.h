// moge::route, backward. Included inside an anonymous namespace (see kernels_*.cpp).

// Gradient of the logits through the k weights, added to `grad` in logit space. With s = sum_j
// gw_j w_j it is w_i (gw_i - s) where the weights are a softmax of the kept logits (finite even
// where their scores underflow), else z_i gw_i here and - z_j s for every j, which is returned.
template <class V>
MOGE_INLINE bool add_weight_gradients(const RouteBackward& a, int64_t token, int64_t num_rows,
                                      typename V::Scalar* grad) {
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
      grad[experts[i] * W + lane] += weights[i] * (upstream[i] - mean);
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

// z from the logits and the saved row maximum and 1 / sum, in place, and its squares filtered along
// the rows of the map, if there is one.
template <class V, int H>
static __attribute__((noinline)) void recompute_scores(typename V::Scalar* tile, int num_experts,
                                                       const typename V::Scalar* row_stats,
                                                       int64_t num_rows, const Stencil<V>* stencil,
                                                       Ahead<V, 1> result) {
  using Reg = typename V::Reg;
  constexpr int W = V::kWidth;
  typename V::Scalar stats[2][W] __attribute__((aligned(64)));
  for (int lane = 0; lane < W; ++lane) {
    const int64_t from = lane < num_rows ? lane : num_rows - 1;
    stats[0][lane] = row_stats[2 * from];
    stats[1][lane] = row_stats[2 * from + 1];
  }
  const Reg maximum = V::load(stats[0]), inverse_sum = V::load(stats[1]);
  const auto score = [&](int j) {
    result.ask(j);
    const Reg e = exp_nonpositive<V>(V::sub(V::load(tile + j * W), maximum));
    const Reg z = V::mul(e, inverse_sum);
    V::store(tile + j * W, z);
    return z;
  };
  if (stencil) {
    Stencil<V>::template filter_rows<H>(*stencil, [&](int j) {
      const Reg z = score(j);
      return V::mul(z, z);
    });
  } else {
    for (int j = 0; j < num_experts; ++j) score(j);
  }
}

template <class V, class In>
MOGE_INLINE bool route_backward_tile(BackwardTile<V>& tile, int64_t token, int64_t num_rows) {
  using Scalar = typename V::Scalar;
  using Reg = typename V::Reg;
  constexpr int W = V::kWidth;
  const RouteBackward& a = tile.args;
  const int n = a.num_experts;
  const bool raw_weights = a.grad_weights && !a.renormalize;
  const bool through_scores = a.groups || a.grad_importance || raw_weights;
  In* grad_rows = static_cast<In*>(a.grad_logits) + token * n;
  if (through_scores) {
    const In* rows = static_cast<const In*>(a.logits) + token * n;
    load_tile<V>(rows, num_rows, n, tile.scores);
    const auto* row_stats = static_cast<const Scalar*>(a.row_stats) + 2 * token;
    const auto result = Ahead<V, 1>::of(grad_rows);
    Reg dot = raw_weights ? weight_dot<V>(a, token, num_rows) : V::set(0);
    Stencil<V>::dispatch(tile.stencil, [&](auto h) {
      constexpr int H = decltype(h)::value;
      recompute_scores<V, H>(tile.scores, n, row_stats, num_rows, tile.stencil, result);
      if (a.groups) {
        dot = V::add(
            dot, norm_gradient<V, H>(*tile.stencil, tile.scores, Scalar(a.norm_grad), tile.grad));
      }
    });
    if (a.grad_importance) {
      const Scalar* upstream = static_cast<const Scalar*>(a.grad_importance);
      for (int j = 0; j < n; ++j) {
        const Reg value = V::set(upstream[j]);
        dot = V::fma(value, V::load(tile.scores + j * W), dot);
        V::store(tile.grad + j * W, a.groups ? V::add(V::load(tile.grad + j * W), value) : value);
      }
    }
    const bool has_grad = a.groups || a.grad_importance;
    const auto next = Ahead<V, 0>::of(num_rows > W ? rows + W * n : rows);
    for (int j = 0; j < n; ++j) {  // softmax backward: z (dL/dz - sum dL/dz z)
      next.ask(j);
      const Reg upstream = has_grad ? V::load(tile.grad + j * W) : V::set(0);
      V::store(tile.grad + j * W, V::mul(V::load(tile.scores + j * W), V::sub(upstream, dot)));
    }
  } else {
    for (int i = 0; i < n * W; ++i) tile.grad[i] = 0;
  }
  const bool valid = !a.grad_weights || add_weight_gradients<V>(a, token, num_rows, tile.grad);
  store_tile<V>(tile.grad, num_rows, n, grad_rows);
  return valid;
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
