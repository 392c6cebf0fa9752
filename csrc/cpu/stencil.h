// The separable Gaussian filter over the map and its adjoint, on a tile (METHOD.md, "Group-sparse
// loss"). g[p] = sqrt(sum_{u,v} G[u,v] z[..]^2 + eps) with G[u,v] = row[u] col[v], so the filter is
// one pass along the rows ("across") and one down the columns: 2 h multiply-adds, not h^2.
//
// Included inside an anonymous namespace (see kernels_*.cpp).

constexpr double kEps = 1e-8;
constexpr int kUnrolled = 5;  // group sizes up to this one are compiled with their loops unrolled

template <class V>
struct Stencil {
  using Scalar = typename V::Scalar;
  using Reg = typename V::Reg;
  static constexpr int W = V::kWidth;

  Groups groups;
  int pitch;     // registers in a row of squares: a torus repeats its first columns
  int unrolled;  // h, or 0 for the loops of any length
  Scalar *row_taps, *col_taps;
  Scalar* squares;  // rows x pitch: z^2
  Scalar* across;   // rows x group_cols: squares filtered along the rows
  Scalar* inverse;  // (group_rows + 1) x group_cols: 1 / g, and a row of zeros
  Scalar* spread;   // one row of the adjoint, padded with num_col_taps - 1 on the left

  static int pitch_of(const Groups& g) {
    const int last = (g.group_cols - 1) * g.stride + g.num_col_taps;
    return last > g.cols ? last : g.cols;
  }
  static size_t scratch_bytes(const Groups& g) {
    const size_t registers = size_t(g.rows) * (pitch_of(g) + g.group_cols) +
                             size_t(g.group_rows + 1) * g.group_cols + g.cols + g.num_col_taps;
    return sizeof(Scalar) * (registers * W + g.num_row_taps + g.num_col_taps) + 6 * 64;
  }
  Stencil(const Groups& g, Scratch& scratch) : groups(g), pitch(pitch_of(g)) {
    const int h = g.num_row_taps == g.num_col_taps ? g.num_row_taps : 0;
    unrolled = h <= kUnrolled ? h : 0;
    row_taps = scratch.take<Scalar>(g.num_row_taps);
    col_taps = scratch.take<Scalar>(g.num_col_taps);
    for (int u = 0; u < g.num_row_taps; ++u) row_taps[u] = Scalar(g.row_taps[u]);
    for (int v = 0; v < g.num_col_taps; ++v) col_taps[v] = Scalar(g.col_taps[v]);
    squares = scratch.take<Scalar>(size_t(g.rows) * pitch * W);
    across = scratch.take<Scalar>(size_t(g.rows) * g.group_cols * W);
    inverse = scratch.take<Scalar>(size_t(g.group_rows + 1) * g.group_cols * W);
    spread = scratch.take<Scalar>(size_t(g.cols + g.num_col_taps) * W);
    Scalar* zeros = inverse + size_t(g.group_rows) * g.group_cols * W;
    for (int i = 0; i < g.group_cols * W; ++i) zeros[i] = 0;
    for (int i = 0; i < (g.cols + g.num_col_taps) * W; ++i) spread[i] = 0;
  }

  // The taps, in registers where their number H is known.
  template <int H>
  struct Taps {
    const Scalar* array;
    Reg registers[H ? H : 1];
    MOGE_INLINE Taps make(const Scalar* from) {
      Taps taps;
      taps.array = from;
      for (int u = 0; u < H; ++u) taps.registers[u] = V::set(from[u]);
      return taps;
    }
    inline __attribute__((always_inline)) Reg operator[](int u) const {
      if constexpr (H > 0) return registers[u];
      return V::set(array[u]);
    }
  };

  // Calls emit(i, j, energy + eps) for every group, row by row. H = 0: any number of taps.
  template <int H, class Emit>
  MOGE_INLINE void for_groups(const Stencil& s, Emit&& emit) {
    const Groups g = s.groups;
    const int num_rows = H ? H : g.num_row_taps, num_cols = H ? H : g.num_col_taps;
    const auto row_taps = Taps<H>::make(s.row_taps), col_taps = Taps<H>::make(s.col_taps);
    for (int r = 0; r < g.rows; ++r) {
      const Scalar* from = s.squares + r * s.pitch * W;
      Scalar* to = s.across + r * g.group_cols * W;
      for (int j = 0; j < g.group_cols; ++j, from += g.stride * W, to += W) {
        Reg sum = V::mul(col_taps[0], V::load(from));
        for (int v = 1; v < num_cols; ++v) sum = V::fma(col_taps[v], V::load(from + v * W), sum);
        V::store(to, sum);
      }
    }
    const int length = g.group_cols * W;
    for (int i = 0; i < g.group_rows; ++i) {
      const int first = i * g.stride;
      const Scalar* rows[H ? H : 1];
      for (int u = 0; u < H; ++u) rows[u] = s.across + wrap(first + u, g.rows) * length;
      for (int j = 0; j < length; j += W) {
        Reg energy;
        for (int u = 0; u < num_rows; ++u) {
          const Scalar* row = H ? rows[u] : s.across + wrap(first + u, g.rows) * length;
          const Reg value = V::load(row + j);
          energy = u ? V::fma(row_taps[u], value, energy) : V::mul(row_taps[u], value);
        }
        // Last: terms far below eps would each be rounded away if they were added to it in turn.
        emit(i, j / W, V::add(energy, V::set(Scalar(kEps))));
      }
    }
  }

  // Calls emit(e, sum over the groups p that hold expert e of G[e in p] * inverse[p]).
  template <int H, class Emit>
  MOGE_INLINE void for_experts(const Stencil& s, Emit&& emit) {
    const Groups g = s.groups;
    const int num_rows = H ? H : g.num_row_taps, num_cols = H ? H : g.num_col_taps;
    const auto row_taps = Taps<H>::make(s.row_taps), col_taps = Taps<H>::make(s.col_taps);
    const int pad = num_cols - 1, length = g.group_cols * W;
    for (int r = 0; r < g.rows; ++r) {
      const Scalar* rows[H ? H : 1];
      for (int u = 0; u < H; ++u) rows[u] = s.inverse + group_row(g, r - u) * length;
      Scalar* to = s.spread + pad * W;
      for (int j = 0; j < length; j += W, to += g.stride * W) {
        Reg sum = V::set(0);
        for (int u = 0; u < num_rows; ++u) {
          const Scalar* row = H ? rows[u] : s.inverse + group_row(g, r - u) * length;
          sum = V::fma(row_taps[u], V::load(row + j), sum);
        }
        V::store(to, sum);
      }
      for (int q = 0; q < pad && g.torus; ++q) {
        V::store(s.spread + q * W, V::load(s.spread + (q + g.cols) * W));
      }
      const Scalar* from = s.spread + pad * W;
      for (int c = 0; c < g.cols; ++c, from += W) {
        Reg sum = V::mul(col_taps[0], V::load(from));
        for (int v = 1; v < num_cols; ++v) sum = V::fma(col_taps[v], V::load(from - v * W), sum);
        emit(r * g.cols + c, sum);
      }
    }
  }

  MOGE_INLINE int wrap(int row, int rows) { return row >= rows ? row - rows : row; }

  // The group row that starts at map row `row`, or the row of zeros.
  MOGE_INLINE int group_row(const Groups& g, int row) {
    if (row < 0) {
      if (!g.torus) return g.group_rows;
      row += g.rows;
    }
    const int i = g.stride == 1 ? row : row / g.stride;
    return i < g.group_rows && i * g.stride == row ? i : g.group_rows;
  }

  MOGE_INLINE void wrap_row(const Stencil& s, int r) {
    Scalar* row = s.squares + r * s.pitch * W;
    for (int c = s.groups.cols; c < s.pitch; ++c) {
      V::store(row + c * W, V::load(row + (c - s.groups.cols) * W));
    }
  }

  // Calls body with h as a compile-time constant.
  template <class Body>
  MOGE_INLINE void dispatch(const Stencil& s, Body&& body) {
    switch (s.unrolled) {
      case 1:
        return body(Constant<1>{});
      case 2:
        return body(Constant<2>{});
      case 3:
        return body(Constant<3>{});
      case 4:
        return body(Constant<4>{});
      case 5:
        return body(Constant<5>{});
      default:
        return body(Constant<0>{});
    }
  }
  template <int H>
  struct Constant {
    static constexpr int value = H;
  };
};

// Sums of the group norms of a tile's squares, a float64 value a lane. At most four are added in
// float32 first: equal norms (a score near 0 has g = sqrt(eps)) would round alike in longer sums.
template <class V, int H>
static __attribute__((noinline)) void sum_norms_h(const Stencil<V>& s, double* sums) {
  typename V::Wide total = V::wide_zero();
  typename V::Reg few = V::set(0);
  const int last = s.groups.group_cols - 1;
  Stencil<V>::template for_groups<H>(s, [&](int, int j, typename V::Reg energy) {
    few = V::add(few, V::sqrt(energy));
    if ((j & 3) == 3 || j == last) {
      V::add_wide(total, few);
      few = V::set(0);
    }
  });
  V::store_wide(sums, total);
}

template <class V>
MOGE_INLINE void sum_norms(const Stencil<V>& s, double* sums) {
  Stencil<V>::dispatch(s, [&](auto h) { sum_norms_h<V, decltype(h)::value>(s, sums); });
}

// grad[e] = norm_grad * z[e] * sum_p G[e in p] / g[p], and returns sum_e grad[e] z[e].
template <class V, int H>
static __attribute__((noinline)) typename V::Reg norm_gradient_h(const Stencil<V>& s,
                                                                 const typename V::Scalar* z,
                                                                 typename V::Scalar norm_grad,
                                                                 typename V::Scalar* grad) {
  using Reg = typename V::Reg;
  constexpr int W = V::kWidth;
  const int group_cols = s.groups.group_cols;
  const Reg factor = V::set(norm_grad);
  Stencil<V>::template for_groups<H>(s, [&](int i, int j, Reg energy) {
    V::store(s.inverse + (i * group_cols + j) * W, V::mul(factor, V::inverse_sqrt(energy)));
  });
  Reg dot = V::set(0);
  Stencil<V>::template for_experts<H>(s, [&](int e, Reg sum) {
    const Reg score = V::load(z + e * W);
    const Reg value = V::mul(sum, score);
    dot = V::fma(value, score, dot);
    V::store(grad + e * W, value);
  });
  return dot;
}

template <class V>
MOGE_INLINE typename V::Reg norm_gradient(const Stencil<V>& s, const typename V::Scalar* z,
                                          typename V::Scalar norm_grad, typename V::Scalar* grad) {
  typename V::Reg dot;
  Stencil<V>::dispatch(
      s, [&](auto h) { dot = norm_gradient_h<V, decltype(h)::value>(s, z, norm_grad, grad); });
  return dot;
}
