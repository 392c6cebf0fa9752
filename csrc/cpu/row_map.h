// The filter of stencil.h where a row of the map is a register, or two: maps of 4x8, 8x8 and 8x16,
// groups of kUsual x kUsual. Lane c is column c: nothing is transposed, a pass down the columns
// takes whole registers, and one along a row reads its neighbours beside it.
//
// Every step of a token waits for the last, so each is done for all tokens of a tile before the
// next. A group has the place of its middle; there are none along a border.
//
// Sums over the experts run down a lane first and across the lanes last, in another order than in
// tiles; the same for every instruction set (Rows).
//
// Included inside an anonymous namespace (see kernels_*.cpp).

template <class V, int kMapRows, int kMapRegisters, bool kOnTorus>
struct RowMap {
  using R = Rows<V>;
  using Reg = typename R::Reg;
  static constexpr int kRows = kMapRows, kC = kMapRegisters;
  static constexpr bool kTorus = kOnTorus;
  static constexpr int kCells = R::template kCells<kC, kTorus>;  // numbers of a row in an array
  // Those of one register's tokens: kRows rows and one of zeros, since AVX2 reads one number before
  // the first row and one after the last. Without it: the scores, of which nothing else is read.
  static constexpr int kPitch = (kRows + 1) * kCells, kScores = kRows * kC * R::kWidth;
  static_assert(kCells / R::kTokens <= (kC + 1) * kRow);  // row_cells

  // Zeros where a step reads what none writes: the rows beside a map, and those without groups.
  MOGE_INLINE void clear(float* cells) {
    const Reg zero = R::set(0);
    R::store(cells - R::kWidth, zero);
    for (int block = 0; block < V::kWidth / R::kTokens; ++block, cells += kPitch) {
      for (int i = kRows * kCells; i < kPitch; i += R::kWidth) R::store(cells + i, zero);
      for (int i = 0; i < kRows * kCells; i += R::kWidth) {
        if (!has_groups(i / kCells)) R::store(cells + i, zero);
      }
    }
  }

  // Whether the middle of a group is in row r, and the columns of register c that hold some: 1, the
  // others 0.
  MOGE_INLINE bool has_groups(int r) { return kTorus || (r > 0 && r < kRows - 1); }
  MOGE_INLINE Reg middles(int c) {
    float lanes[R::kWidth] __attribute__((aligned(64)));
    for (int i = 0; i < R::kWidth; ++i) {
      const int column = c * kRow + i % kRow;
      lanes[i] = kTorus || (column > 0 && column < kC * kRow - 1);
    }
    return R::load(lanes);
  }

  MOGE_INLINE void store(float* cells, int r, int c, Reg a) {
    R::template store_cells<kC, kTorus>(cells + r * kCells, c, a);
  }
  MOGE_INLINE Reg load(const float* cells, int r, int c) {
    return R::load(cells + r * kCells + c * R::kWidth);
  }

  // The filter, which is its own adjoint, over its middle taps: visit(r, c, sum) for the registers
  // of `cells`; `down` and `along` are its outer taps. kAll: also where there are no groups.
  template <bool kAll, class Visit>
  MOGE_INLINE void filter(const float* cells, Reg down, Reg along, Visit&& visit) {
    MOGE_UNROLL
    for (int c = 0; c < kC; ++c) {
      Reg row[kRows];
      MOGE_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const Reg sides = R::template sides<kC, kTorus>(cells + r * kCells, c);
        row[r] = R::fma(along, sides, load(cells, r, c));
      }
      MOGE_UNROLL
      for (int r = 0; r < kRows; ++r) {
        if (!kAll && !has_groups(r)) continue;
        const Reg sides = R::add(row[(r + kRows - 1) % kRows], row[(r + 1) % kRows]);
        visit(r, c, R::fma(down, sides, row[r]));
      }
    }
  }
};

template <class V>
MOGE_INLINE bool has_row_shape(const Groups& g) {
  return kFloat<V> &&
         ((g.rows == 8 && (g.cols == 8 || g.cols == 16)) || (g.rows == 4 && g.cols == 8));
}
template <class V>
MOGE_INLINE bool fits_row_map(const Stencil<V>* s) {
  return s && s->unrolled == kUsual && has_row_shape<V>(s->groups);
}

// Calls body with a value of the RowMap type of a stencil that fits.
template <class V, class Body>
MOGE_INLINE void with_row_map(const Stencil<V>& s, Body&& body) {
  const bool torus = s.groups.torus;
  if (s.groups.rows == 4) {
    torus ? body(RowMap<V, 4, 1, true>{}) : body(RowMap<V, 4, 1, false>{});
  } else if (s.groups.cols == 8) {
    torus ? body(RowMap<V, 8, 1, true>{}) : body(RowMap<V, 8, 1, false>{});
  } else {
    torus ? body(RowMap<V, 8, 2, true>{}) : body(RowMap<V, 8, 2, false>{});
  }
}

// Numbers of an array of a tile's rows, torus or not, for any instruction set, with room before.
template <class V>
MOGE_INLINE size_t row_cells(const Groups& g) {
  if (!has_row_shape<V>(g)) return 0;
  return size_t(g.rows + 1) * (g.cols + kRow) * V::kWidth + 2 * kLanes;
}
template <class V>
MOGE_INLINE typename V::Scalar* take_row_cells(Scratch& scratch, const Groups& g) {
  return scratch.take<typename V::Scalar>(row_cells<V>(g)) + kLanes;
}
