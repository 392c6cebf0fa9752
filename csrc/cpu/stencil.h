// The separable Gaussian filter of the map and its adjoint, on a tile (docs/method.md "Group-sparse
// loss"). g[p] = sqrt(sum_{u,v} G[u,v] z[..]^2 + eps) with G[u,v] = row[u] col[v], so the filter is
// one pass along the rows ("across") and one down the columns: 2 h multiply-adds, not h^2.
//
// What a pass along a row of the map needs of its last h - 1 cells stays in registers: stores are
// what a tile has most of, and this saves one an expert, with the h loads that read it back.
//
// Included inside an anonymous namespace (see kernels_*.cpp).

constexpr double kEps = 1e-8;
constexpr int kUsual = 3;     // the group side that has code of its own for maps of 8 or 16 columns
constexpr int kUnrolled = 5;  // group sides up to this one keep their window in registers

template <class V>
struct Stencil {
  using Scalar = typename V::Scalar;
  using Reg = typename V::Reg;
  static constexpr int W = V::kWidth;

  Groups groups;
  int pitch;                    // registers in `line`: a torus repeats its first columns
  int unrolled;                 // h, or 0 for the loops of any length, stride and taps
  Scalar scale;                 // energies are this times what the passes leave
  Scalar *row_taps, *col_taps;  // where unrolled: of side d = 1 .. h / 2, over the middle tap
  Scalar* across;               // rows x group_cols: squares filtered along the rows
  Scalar* inverse;              // (group_rows + 1) x group_cols: 1 / g, and a row of zeros
  Scalar* line;  // one row of squares, or of the adjoint behind num_col_taps - 1 cells; H = 0

  static int pitch_of(const Groups& g) {
    const int last = (g.group_cols - 1) * g.stride + g.num_col_taps;
    return last > g.cols ? last : g.cols;
  }
  static size_t scratch_bytes(const Groups& g) {
    const size_t registers =
        size_t(g.rows + g.group_rows + 1) * g.group_cols + pitch_of(g) + g.num_col_taps;
    return sizeof(Scalar) * (registers * W + g.num_row_taps + g.num_col_taps) + 5 * 64;
  }
  Stencil(const Groups& g, Scratch& scratch) : groups(g), pitch(pitch_of(g)) {
    const int h = g.num_row_taps == g.num_col_taps ? g.num_row_taps : 0;
    const bool known = h <= kUnrolled && g.stride == 1;
    unrolled = known && mirrored(g.row_taps, h) && mirrored(g.col_taps, h) ? h : 0;
    scale = unrolled ? Scalar(g.row_taps[h / 2] * g.col_taps[h / 2]) : Scalar(1);
    row_taps = scratch.take<Scalar>(g.num_row_taps);
    col_taps = scratch.take<Scalar>(g.num_col_taps);
    for (int u = 0; u < g.num_row_taps && !unrolled; ++u) row_taps[u] = Scalar(g.row_taps[u]);
    for (int v = 0; v < g.num_col_taps && !unrolled; ++v) col_taps[v] = Scalar(g.col_taps[v]);
    for (int d = 1, middle = h / 2; d <= middle && unrolled; ++d) {
      row_taps[d - 1] = Scalar(g.row_taps[middle - d] / g.row_taps[middle]);
      col_taps[d - 1] = Scalar(g.col_taps[middle - d] / g.col_taps[middle]);
    }
    across = scratch.take<Scalar>(size_t(g.rows) * g.group_cols * W);
    inverse = scratch.take<Scalar>(size_t(g.group_rows + 1) * g.group_cols * W);
    line = scratch.take<Scalar>(size_t(pitch + g.num_col_taps) * W);
    Scalar* zeros = inverse + size_t(g.group_rows) * g.group_cols * W;
    for (int i = 0; i < g.group_cols * W; ++i) zeros[i] = 0;
  }

  // Taps u and 2 (h / 2) - u are equal, where both exist, and the middle one is not 0.
  MOGE_INLINE bool mirrored(const double* taps, int h) {
    bool equal = h > 0 && taps[h / 2] > 0;
    for (int u = 1; u < h && equal; ++u)
      equal = 2 * (h / 2) - u >= h || taps[u] == taps[2 * (h / 2) - u];
    return equal;
  }

  // sum_u taps[u] cell(u) over the middle tap, for mirrored taps: cells of equal taps are added
  // first, for an addition costs less than a multiplication, and the middle one is taken as it is.
  template <int H>
  struct Taps {
    Reg side[H / 2 + 1];
    explicit inline __attribute__((always_inline)) Taps(const Scalar* from) {
      for (int d = 1; d <= H / 2; ++d) side[d] = V::set(from[d - 1]);
    }
    template <class Cell>
    inline __attribute__((always_inline)) Reg sum(Cell&& cell) const {
      constexpr int kMiddle = H / 2;
      Reg total = cell(kMiddle);
      for (int d = 1; d <= kMiddle; ++d) {
        Reg pair = cell(kMiddle - d);
        if (kMiddle + d < H) pair = V::add(pair, cell(kMiddle + d));
        total = V::fma(side[d], pair, total);
      }
      return total;
    }
  };

  // The last H cells of a row, which come one by one. push returns their sum under the taps, the
  // latest cell under the last tap (kReversed: the first).
  template <int H, bool kReversed>
  struct Window {
    Taps<H> taps;
    Reg cells[H] = {};
    explicit inline __attribute__((always_inline)) Window(const Scalar* from) : taps(from) {}
    inline __attribute__((always_inline)) Reg push(Reg latest) {
      cells[H - 1] = latest;
      const Reg sum = taps.sum([&](int v) { return cells[kReversed ? H - 1 - v : v]; });
      for (int v = 0; v + 1 < H; ++v) cells[v] = cells[v + 1];
      return sum;
    }
  };

  // Fills `across`. square(e) returns the square of expert e; it is called once for each, in order.
  template <int H, class Square>
  MOGE_INLINE void filter_rows(const Stencil& s, Square&& square) {
    const Groups g = s.groups;
    Scalar* to = s.across;
    if constexpr (H == kUsual && V::kTransposes) {
      if (g.cols == 8) return filter_unrolled<H, 8>(s, square);
      if (g.cols == 16) return filter_unrolled<H, 16>(s, square);
    }
    if constexpr (H > 0) {
      filter_unrolled<H, 0>(s, square);
    } else {
      for (int r = 0; r < g.rows; ++r) {
        for (int c = 0; c < g.cols; ++c) V::store(s.line + c * W, square(r * g.cols + c));
        for (int c = g.cols; c < s.pitch; ++c) {
          V::store(s.line + c * W, V::load(s.line + (c - g.cols) * W));
        }
        const Scalar* from = s.line;
        for (int j = 0; j < g.group_cols; ++j, from += g.stride * W, to += W) {
          Reg sum = V::set(0);
          for (int v = 0; v < g.num_col_taps; ++v) {
            sum = V::fma(V::set(s.col_taps[v]), V::load(from + v * W), sum);
          }
          V::store(to, sum);
        }
      }
    }
  }

  // filter_rows of H > 0. kCols: the columns of the map, or 0 for any number. Where they are known
  // a row is straight code, in which no register is copied to make room for the next cell.
  template <int H, int kCols, class Square>
  MOGE_INLINE void filter_unrolled(const Stencil& s, Square& square) {
    const Groups& g = s.groups;
    const bool torus = g.torus;
    const int64_t num_experts = int64_t(g.rows) * g.cols;
    Scalar* to = s.across;
    Window<H, false> window(s.col_taps);
    for (int64_t e = 0; e < num_experts;) {
      Reg first[H] = {};
      for (int v = 0; v + 1 < H; ++v) window.cells[v] = first[v] = square(e++);
      const auto next = [&] {
        V::store(to, window.push(square(e++)));
        to += W;
      };
      if constexpr (kCols > 0) {
        repeat<kCols - H + 1>(next);
      } else {
        for (int c = H - 1; c < g.cols; ++c) next();
      }
      for (int v = 0; v + 1 < H && torus; ++v, to += W) V::store(to, window.push(first[v]));
    }
  }

  template <int kTimes, class Body>
  MOGE_INLINE void repeat(Body&& body) {
    if constexpr (kTimes > 0) {
      body();
      repeat<kTimes - 1>(body);
    }
  }

  // Calls visit(energy) for every row of groups, where energy(j W) / scale is the energy of the
  // group at column j. eps is not in it: it is added last, since terms far below it would each be
  // rounded away if they were added to it.
  template <int H, class Visit>
  MOGE_INLINE void for_group_rows(const Stencil& s, Visit&& visit) {
    const Groups g = s.groups;
    const int64_t length = int64_t(g.group_cols) * W;
    for (int i = 0; i < g.group_rows; ++i) {
      const int first = i * g.stride;
      if constexpr (H > 0) {
        const Taps<H> taps(s.row_taps);
        const Scalar* rows[H];
        for (int u = 0; u < H; ++u) rows[u] = s.across + wrap(first + u, g.rows) * length;
        visit([&](int64_t j) { return taps.sum([&](int u) { return V::load(rows[u] + j); }); });
      } else {
        visit([&](int64_t j) {
          Reg energy = V::set(0);
          for (int u = 0; u < g.num_row_taps; ++u) {
            const Scalar* row = s.across + wrap(first + u, g.rows) * length;
            energy = V::fma(V::set(s.row_taps[u]), V::load(row + j), energy);
          }
          return energy;
        });
      }
    }
  }

  // Calls emit(energy / scale) for every group, row by row.
  template <int H, class Emit>
  MOGE_INLINE void for_groups(const Stencil& s, Emit&& emit) {
    const int64_t length = int64_t(s.groups.group_cols) * W;
    for_group_rows<H>(s, [&](auto&& energy) {
      for (int64_t j = 0; j < length; j += W) emit(energy(j));
    });
  }

  // Calls emit(e, sum over the groups p that hold expert e of G[e in p] / scale * inverse[p]).
  template <int H, class Emit>
  MOGE_INLINE void for_experts(const Stencil& s, Emit&& emit) {
    const Groups g = s.groups;
    const int64_t length = int64_t(g.group_cols) * W;
    int64_t e = 0;
    for (int r = 0; r < g.rows; ++r, e += g.cols) {
      if constexpr (H > 0) {
        const Scalar* rows[H];
        for (int u = 0; u < H; ++u) rows[u] = s.inverse + group_row<1>(g, r - u) * length;
        const Taps<H> taps(s.row_taps);
        const auto down =
            [&](int64_t j) {  // the adjoint's pass down the columns, at group column j
              return taps.sum([&](int u) { return V::load(rows[u] + j * W); });
            };
        Window<H, true> window(s.col_taps);
        Reg first[H] = {};
        int64_t c = 0;
        for (int v = 0; v + 1 < H; ++v) window.cells[v] = V::set(0);
        if (g.torus) {
          for (; c < H - 1; ++c) window.cells[c] = first[c] = down(c);
        }
        for (; c < g.group_cols; ++c) emit(e + c, window.push(down(c)));
        for (int v = 0; v + 1 < H; ++v) {
          emit(g.torus ? e + v : e + c + v, window.push(g.torus ? first[v] : V::set(0)));
        }
      } else {
        const int pad = g.num_col_taps - 1;
        for (int q = 0; q < (pad + g.cols) * W; ++q) s.line[q] = 0;
        Scalar* to = s.line + pad * W;
        for (int64_t j = 0; j < length; j += W, to += g.stride * W) {
          Reg sum = V::set(0);
          for (int u = 0; u < g.num_row_taps; ++u) {
            const Scalar* row = s.inverse + group_row<0>(g, r - u) * length;
            sum = V::fma(V::set(s.row_taps[u]), V::load(row + j), sum);
          }
          V::store(to, sum);
        }
        for (int q = 0; q < pad && g.torus; ++q) {
          V::store(s.line + q * W, V::load(s.line + (q + g.cols) * W));
        }
        const Scalar* from = s.line + pad * W;
        for (int c = 0; c < g.cols; ++c, from += W) {
          Reg sum = V::set(0);
          for (int v = 0; v <= pad; ++v) {
            sum = V::fma(V::set(s.col_taps[v]), V::load(from - v * W), sum);
          }
          emit(e + c, sum);
        }
      }
    }
  }

  MOGE_INLINE int wrap(int row, int rows) { return row >= rows ? row - rows : row; }

  // The group row that starts at map row `row`, or the row of zeros. kStride: the stride, or 0 for
  // any: a compiler that does not know it divides even where it is 1.
  template <int kStride>
  MOGE_INLINE int group_row(const Groups& g, int row) {
    if (row < 0) {
      if (!g.torus) return g.group_rows;
      row += g.rows;
    }
    if constexpr (kStride == 1) return row < g.group_rows ? row : g.group_rows;
    const int i = row / g.stride;
    return i < g.group_rows && i * g.stride == row ? i : g.group_rows;
  }

  // Calls body with h as a compile-time constant; 0 where there is no stencil.
  template <class Body>
  MOGE_INLINE void dispatch(const Stencil* s, Body&& body) {
    switch (s ? s->unrolled : 0) {
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
