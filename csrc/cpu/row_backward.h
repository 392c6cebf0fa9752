// moge::route, backward, by rows of the map (row_map.h). Included inside an anonymous namespace
// (see kernels_*.cpp).

// A tile of tokens. The arrays hold RowMap::kPitch numbers for each register's tokens, `scores`
// kScores.
template <class V>
struct RowTile {
  using R = Rows<V>;
  using Reg = typename R::Reg;
  float *squares, *inverse, *scores;
  const float* stats;     // the row maximum and 1 / sum of each token
  const float* upstream;  // of the importance, or null
  int64_t num_rows, num_experts;
  float down, along, scale;  // the filter: outer taps over the middle one, and the two
                             // middle ones' product
  // A number for each token: dL/dg; 1 / sum where it counts; the part of the sum of u e that is the
  // weights'.
  float norm_grad[V::kWidth] __attribute__((aligned(64)));
  float counted[V::kWidth] __attribute__((aligned(64)));
  float weight_dot[V::kWidth] __attribute__((aligned(64)));
  // A register for each register's tokens: lanes of the sum of u e, then - (sum of u e) / sum of e;
  // and for unit energy what it takes from every expert.
  float dots[kRow * V::kWidth] __attribute__((aligned(64)));
  float own[kRow * V::kWidth] __attribute__((aligned(64)));

  // Calls body(lane, block) for every register of tokens.
  template <class Body>
  inline __attribute__((always_inline)) void for_tokens(Body&& body) const {
    for (int64_t lane = 0, block = 0; lane < num_rows; lane += R::kTokens, ++block) {
      body(lane, block);
    }
  }
  // 0 where the second token of a register is past the end: then it is the first once more.
  inline __attribute__((always_inline)) int64_t next(int64_t lane) const {
    return R::kTokens == 1 || lane + 1 < num_rows;
  }
  inline __attribute__((always_inline)) Reg maximum(int64_t lane) const {
    return R::spread(stats + 2 * lane, 2 * next(lane));
  }
  inline __attribute__((always_inline)) Reg inverse_sum(int64_t lane) const {
    return R::spread(stats + 2 * lane + 1, 2 * next(lane));
  }
};

// Rows that are wanted soon, as Ahead: a cache line of float32 whenever kEvery registers are done.
// Of 16-bit values, whose rows are half as long, that is the tile after the next as well.
template <class V, int kWrite>
struct RowAhead {
  static constexpr int kLine = 64, kEvery = kLine / int(sizeof(float)) / Rows<V>::kWidth;
  const char* next;
  inline __attribute__((always_inline)) void ask(int q) {
    if (q % kEvery) return;
    __builtin_prefetch(next, kWrite, 2);
    next += kLine;
  }
};

// e = e^(x - maximum) of the tile's logits, and squares. `result`: what row_adjoint will write.
template <class V, class In, class Map, bool kImportance>
MOGE_STEP void row_scores(RowTile<V>& tile, const In* rows, RowAhead<V, 1> result) {
  using R = Rows<V>;
  tile.for_tokens([&](int64_t lane, int64_t block) {
    const auto maximum = tile.maximum(lane);
    const In* x = rows + lane * tile.num_experts;
    const int64_t pitch = tile.next(lane) * tile.num_experts;
    float* const e = tile.scores + block * Map::kScores;
    float* const squares = tile.squares + block * Map::kPitch;
    auto dot = R::set(0);
    MOGE_UNROLL
    for (int q = 0; q < Map::kRows * Map::kC; ++q) {
      result.ask(q);
      const auto z = exp_nonpositive<R>(R::sub(R::load_tokens(x + q * kRow, pitch), maximum));
      R::store(e + q * R::kWidth, z);
      Map::store(squares, q / Map::kC, q % Map::kC, R::mul(z, z));
      if constexpr (kImportance) dot = R::fma(R::repeat(tile.upstream + q * kRow), z, dot);
    }
    if constexpr (kImportance) {
      R::store(tile.dots + block * R::kWidth,
               R::mul(dot, R::spread(tile.counted + lane, tile.next(lane))));
    }
  });
}

// dL/dg / g of the groups. The sum over the experts of u e is that over the groups of this times
// their energies, since the filter is linear.
template <class V, class Map, bool kUnit, bool kImportance>
MOGE_STEP void row_inverse(RowTile<V>& tile) {
  using R = Rows<V>;
  using Reg = typename R::Reg;
  const Reg down = R::set(tile.down), along = R::set(tile.along), filter_scale = R::set(tile.scale);
  const Reg eps = R::set(float(kEps));
  Reg middles[Map::kC];
  for (int c = 0; c < Map::kC; ++c) middles[c] = Map::middles(c);
  tile.for_tokens([&](int64_t lane, int64_t block) {
    const float* const squares = tile.squares + block * Map::kPitch;
    float* const inverse = tile.inverse + block * Map::kPitch;
    const Reg inverse_sum = tile.inverse_sum(lane);
    Reg squared, dot = R::set(0);
    if constexpr (kUnit) {
      Reg energy = R::set(0);
      MOGE_UNROLL
      for (int q = 0; q < Map::kRows * Map::kC; ++q) {
        energy = R::add(energy, Map::load(squares, q / Map::kC, q % Map::kC));
      }
      squared = reciprocal<R>(R::total(energy));
    } else {
      squared = R::mul(inverse_sum, inverse_sum);
    }
    const Reg scale = R::mul(squared, filter_scale);
    const Reg upstream = R::mul(scale, R::spread(tile.norm_grad + lane, tile.next(lane)));
    Reg numerator[Map::kC];
    for (int c = 0; c < Map::kC; ++c) numerator[c] = R::mul(upstream, middles[c]);
    Map::template filter<false>(squares, down, along, [&](int r, int c, Reg energy) {
      const Reg quotient = R::div(numerator[c], R::sqrt(R::fma(energy, scale, eps)));
      Map::store(inverse, r, c, quotient);
      dot = R::fma(quotient, energy, dot);
    });
    float* const dots = tile.dots + block * R::kWidth;
    if constexpr (kUnit) {
      const Reg own = R::mul(R::total(dot), squared);
      R::store(tile.own + block * R::kWidth, own);
      dot = kImportance ? R::total(R::load(dots)) : R::set(0);
    } else {
      dot = R::total(kImportance ? R::add(dot, R::load(dots)) : dot);
    }
    dot = R::add(dot, R::spread(tile.weight_dot + lane, tile.next(lane)));
    R::store(dots, R::mul(R::sub(R::set(0), dot), inverse_sum));
  });
}

// The gradient: e (u - (sum u e) / sum e). `next`: what the next tile will read.
template <class V, class Map, bool kUnit, bool kImportance>
MOGE_STEP void row_adjoint(const RowTile<V>& tile, float* grad_rows, RowAhead<V, 0> next) {
  using R = Rows<V>;
  using Reg = typename R::Reg;
  const Reg down = R::set(tile.down), along = R::set(tile.along);
  tile.for_tokens([&](int64_t lane, int64_t block) {
    const float* const e = tile.scores + block * Map::kScores;
    const float* const inverse = tile.inverse + block * Map::kPitch;
    float* const grad = grad_rows + lane * tile.num_experts;
    const int64_t pitch = tile.next(lane) * tile.num_experts;
    const Reg dot = R::load(tile.dots + block * R::kWidth);
    Reg own, counted;
    if constexpr (kUnit) own = R::load(tile.own + block * R::kWidth);
    if constexpr (kImportance) counted = R::spread(tile.counted + lane, tile.next(lane));
    Map::template filter<true>(inverse, down, along, [&](int r, int c, Reg sum) {
      const int q = r * Map::kC + c;
      next.ask(q);
      const Reg z = R::load(e + q * R::kWidth);
      if constexpr (kUnit) sum = R::sub(sum, own);
      Reg value = R::fma(sum, z, dot);
      if constexpr (kImportance) {
        value = R::fma(R::repeat(tile.upstream + q * kRow), counted, value);
      }
      R::store_tokens(grad + q * kRow, pitch, R::mul(z, value));
    });
  });
}

// route_backward_tile for such maps.
template <class V, class In, bool kPlain>
static __attribute__((noinline)) bool row_backward_tile(BackwardTile<V>& tile, int64_t token,
                                                        int64_t num_rows) {
  constexpr int W = V::kWidth;
  const RouteBackward& a = tile.args;
  const int n = a.num_experts;
  constexpr bool kInPlace = sizeof(In) == sizeof(float);
  const In* rows = static_cast<const In*>(a.logits) + token * n;
  In* grad_rows = static_cast<In*>(a.grad_logits) + token * n;
  const Stencil<V>& stencil = *tile.stencil;
  RowTile<V> t;
  t.squares = tile.squares;
  t.inverse = tile.inverse;
  t.scores = tile.scores;
  t.stats = static_cast<const float*>(a.row_stats) + 2 * token;
  t.upstream = static_cast<const float*>(a.grad_importance);
  t.num_rows = num_rows < W ? num_rows : W;
  t.num_experts = n;
  t.down = stencil.row_taps[0];
  t.along = stencil.col_taps[0];
  t.scale = stencil.scale;
  const auto norm_grad = V::set(float(a.norm_grad));
  V::store(t.norm_grad, counted_lanes<V, kPlain>(a, token, num_rows, norm_grad));
  V::store(t.counted, V::set(0));
  for (int lane = 0; t.upstream && lane < t.num_rows; ++lane) {
    const bool counts = kPlain || !a.wider.mask || a.wider.mask[token + lane];
    t.counted[lane] = counts ? t.stats[2 * lane + 1] : 0;
  }
  const bool raw_weights = a.grad_weights && !a.renormalize;
  V::store(t.weight_dot, raw_weights ? weight_dot<V>(a, token, num_rows) : V::set(0));
  float* grad;
  if constexpr (kInPlace) {
    grad = grad_rows;
  } else {
    grad = tile.grad;
  }
  with_row_map(stencil, [&](const auto& map) {
    using Map = std::decay_t<decltype(map)>;
    const auto steps = [&](auto unit, auto importance) {
      constexpr bool kUnit = decltype(unit)::value, kImportance = decltype(importance)::value;
      const In* next = rows + (num_rows > W ? W * n : 0);
      row_scores<V, In, Map, kImportance>(t, rows, {reinterpret_cast<const char*>(grad_rows)});
      row_inverse<V, Map, kUnit, kImportance>(t);
      row_adjoint<V, Map, kUnit, kImportance>(t, grad, {reinterpret_cast<const char*>(next)});
    };
    const std::true_type yes;
    const std::false_type no;
    if (stencil.groups.unit_energy) {
      t.upstream ? steps(yes, yes) : steps(yes, no);
    } else {
      t.upstream ? steps(no, yes) : steps(no, no);
    }
  });
  const bool valid =
      !a.grad_weights || add_weight_gradients<V, kPlain>(a, token, num_rows, grad, 1, n);
  if constexpr (!kInPlace) {  // rounded to In once, after every term was added
    using R = Rows<V>;
    t.for_tokens([&](int64_t lane, int64_t) {
      const int64_t pitch = t.next(lane) * n;
      for (int j = 0; j < n; j += kRow) {
        R::store_tokens(grad_rows + lane * n + j, pitch,
                        R::load_tokens(static_cast<const float*>(grad + lane * n + j), pitch));
      }
    });
  }
  if (!kPlain) clear_dropped_rows<V>(a, token, num_rows, grad_rows);
  return valid;
}
