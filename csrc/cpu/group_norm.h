// moge::group_norm, forward and backward: the filter of route on scores given from outside.
// Included inside an anonymous namespace (see kernels_*.cpp).

template <class V>
struct NormTile {
  using Scalar = typename V::Scalar;
  static constexpr int W = V::kWidth;
  Scratch scratch;
  Scalar *scores, *grad;
  Stencil<V> stencil;

  static size_t bytes(const GroupNorm& a) {
    return sizeof(Scalar) * 2 * size_t(a.num_experts) * W + 2 * 64 +
           Stencil<V>::scratch_bytes(*a.groups);
  }
  explicit NormTile(const GroupNorm& a)
      : scratch(bytes(a)),
        scores(scratch.take<Scalar>(size_t(a.num_experts) * W)),
        grad(scratch.take<Scalar>(size_t(a.num_experts) * W)),
        stencil(*a.groups, scratch) {}
};

// Squares of a tile of scores, filtered along the rows, and what their norms are taken with.
template <class V>
struct LoadedScores {
  unsigned suspects;        // lanes that hold a NaN or an infinity
  typename V::Reg squared;  // as in sum_norms
  typename V::Reg factor;   // unit energy: what scores were multiplied by before the squares
};

template <class V, class In>
MOGE_INLINE LoadedScores<V> load_scores(NormTile<V>& tile, const GroupNorm& a, int64_t token,
                                        int64_t num_rows) {
  const int n = a.num_experts;
  auto finite = V::set(0), largest = V::set(0);
  const auto* rows = static_cast<const In*>(a.scores) + token * n;
  load_tile<V>(rows, num_rows, n, tile.scores, [&](int64_t, typename V::Reg z) {
    finite = V::fma(z, V::set(0), finite);
    largest = V::max(largest, V::max(z, V::sub(V::set(0), z)));
    return z;
  });
  LoadedScores<V> loaded = {V::nan_bits(finite), V::set(1), energy_factor<V>(largest)};
  Stencil<V>::dispatch(&tile.stencil, [&](auto h) {
    constexpr int H = decltype(h)::value;
    if (a.groups->unit_energy) {
      loaded.squared =
          reciprocal<V>(filter_squares<V, H, true>(tile.stencil, tile.scores, loaded.factor));
    } else {
      filter_squares<V, H, false>(tile.stencil, tile.scores, loaded.factor);
    }
  });
  return loaded;
}

// Calls body(chunk, first token, number of rows) for every tile of the chunks.
template <class V, class Body>
MOGE_INLINE void for_tiles(const GroupNorm& a, int64_t begin, int64_t end, Body&& body) {
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const int64_t first = chunk * a.chunk_tokens;
    const int64_t rest = a.num_tokens - first;
    const int64_t last = first + (rest < a.chunk_tokens ? rest : a.chunk_tokens);
    for (int64_t token = first; token < last; token += V::kWidth) {
      body(chunk, token, last - token);
    }
  }
}

template <class V, class In>
static void group_norm_forward_chunks(const GroupNorm& a, int64_t begin, int64_t end) {
  FlushSubnormals flush;
  NormTile<V> tile(a);
  for (int64_t chunk = begin; chunk < end; ++chunk) a.sums[chunk] = {0.0, -1, -1};
  for_tiles<V>(a, begin, end, [&](int64_t chunk, int64_t token, int64_t num_rows) {
    const auto loaded = load_scores<V, In>(tile, a, token, num_rows);
    double norms[V::kWidth] __attribute__((aligned(64)));
    Stencil<V>::dispatch(&tile.stencil, [&](auto h) {
      sum_norms<V, decltype(h)::value>(tile.stencil, loaded.squared, norms);
    });
    for (int lane = 0; lane < V::kWidth && lane < num_rows; ++lane) {
      if (a.mask && !a.mask[token + lane]) continue;
      if ((loaded.suspects >> lane & 1) && a.sums[chunk].bad_logits_row < 0) {
        a.sums[chunk].bad_logits_row = token + lane;
      }
      a.sums[chunk].loss += norms[lane];
    }
  });
}

template <class V, class In>
static void group_norm_backward_chunks(const GroupNorm& a, int64_t begin, int64_t end) {
  FlushSubnormals flush;
  NormTile<V> tile(a);
  for_tiles<V>(a, begin, end, [&](int64_t, int64_t token, int64_t num_rows) {
    const auto loaded = load_scores<V, In>(tile, a, token, num_rows);
    const auto norm_grad = V::set(typename V::Scalar(a.norm_grad));
    Stencil<V>::dispatch(&tile.stencil, [&](auto h) {
      constexpr int H = decltype(h)::value;
      if (a.groups->unit_energy) {
        norm_gradient<V, H, Energy::kScaledUnit>(tile.stencil, tile.scores, loaded.squared,
                                                 loaded.factor, norm_grad, tile.grad);
      } else {
        norm_gradient<V, H, Energy::kAsItIs>(tile.stencil, tile.scores, loaded.squared,
                                             loaded.factor, norm_grad, tile.grad);
      }
    });
    In* grad_rows = static_cast<In*>(a.grad_scores) + token * a.num_experts;
    store_tile<V>([&](int64_t j) { return V::load(tile.grad + j * V::kWidth); }, num_rows,
                  a.num_experts, grad_rows);
    for (int64_t row = 0; a.mask && row < V::kWidth && row < num_rows; ++row) {
      if (!a.mask[token + row]) clear_row(grad_rows + row * a.num_experts, a.num_experts);
    }
  });
}
