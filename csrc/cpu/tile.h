// A tile: kWidth tokens by N experts, one token in each lane, expert j's register at offset j *
// kWidth. Loading and storing it transposes blocks of kWidth x kWidth in registers.
//
// Included inside an anonymous namespace (see kernels_*.cpp).

// Sums over tokens are kept in 16 lanes by the token's position modulo 16, whatever the vector
// width, so that they round alike for every instruction set.
constexpr int kLanes = 16;

// Rows that the next tile reads or this one will write. A tile's rows are touched 64 bytes at a
// time, N values apart, a pattern that the processor does not foresee; asking for them in a burst
// fills its queue of misses. So the loops over experts, one step of which is kWidth of these
// values, ask for a little at each step. Into the second-level cache: a tile's own arrays fill the
// first. `moge-bench perf run` without and with it, N=64, k=2, h=3, AVX-512: T=65536 on two threads
// 7.6 and 5.5 ms, T=8192 on one 1.68 and 1.29 ms.
template <class V, int kWrite>
struct Ahead {
  const char* next;
  int64_t step;
  template <class In>
  MOGE_INLINE Ahead of(const In* rows) {
    return {reinterpret_cast<const char*>(rows), int64_t(V::kWidth * sizeof(In))};
  }
  // Once a step.
  inline __attribute__((always_inline)) void ask() {
    __builtin_prefetch(next, kWrite, 2);
    next += step;
  }
};

// Columns j .. j + kWidth - 1 of kWidth rows: one a register.
template <class V, class In>
MOGE_INLINE void load_block(const In* const* row, int64_t j, typename V::Reg* block) {
  if constexpr (sizeof(In) == sizeof(float)) {
    V::load_block(row, j, block);
  } else {
    for (int i = 0; i < V::kWidth; ++i) block[i] = V::load_row(row[i] + j);
    V::transpose(block);
  }
}

// The first `count` values of a row, at most a register's; the other lanes are 0. There is no mask
// for values of 16 bits before AVX-512, and they are rare enough to go by way of memory.
template <class V, class In>
MOGE_INLINE typename V::Reg load_part(const In* p, int count) {
  if constexpr (sizeof(In) == sizeof(float)) {
    return V::load_part(p, count);
  } else {
    In part[V::kWidth] = {};
    for (int c = 0; c < count; ++c) part[c] = p[c];
    return V::load_row(part);
  }
}

template <class V, class In>
MOGE_INLINE void store_part(In* p, typename V::Reg a, int count) {
  if constexpr (sizeof(In) == sizeof(float)) {
    V::store_part(p, a, count);
  } else {
    In part[V::kWidth];
    V::store_row(part, a);
    for (int c = 0; c < count; ++c) p[c] = part[c];
  }
}

// A block of registers is declared where its indices are constants: one that is also indexed by a
// variable would be kept in memory everywhere.

// tile[j] = map(j, register of expert j) for every expert. Rows past the end repeat the last one;
// their lanes are ignored later.
template <class V, class In, class Map>
MOGE_INLINE void load_tile(const In* rows, int64_t num_rows, int num_experts,
                           typename V::Scalar* tile, Map&& map) {
  constexpr int W = V::kWidth;
  const In* row[W];
  for (int i = 0; i < W; ++i) {
    row[i] = rows + (i < num_rows ? i : num_rows - 1) * int64_t(num_experts);
  }
  if constexpr (V::kTransposes) {
    int64_t j = 0;
    for (; j + W <= num_experts; j += W) {
      typename V::Reg block[W];
      load_block<V>(row, j, block);
      for (int i = 0; i < W; ++i) V::store(tile + (j + i) * W, map(j + i, block[i]));
    }
    if (const int rest = int(num_experts - j)) {
      typename V::Reg block[W];
      for (int i = 0; i < W; ++i) block[i] = load_part<V>(row[i] + j, rest);
      V::transpose(block);
      for (int i = 0; i < rest; ++i) V::store(tile + (j + i) * W, map(j + i, block[i]));
    }
  } else {
    for (int64_t j = 0; j < num_experts; ++j) {
      typename V::Scalar lanes[W] __attribute__((aligned(64)));
      for (int i = 0; i < W; ++i) lanes[i] = to_scalar(row[i][j]);
      V::store(tile + j * W, map(j, V::load(lanes)));
    }
  }
}

// Writes cell(j), the register of expert j, to the rows. cell is called once for every expert.
template <class V, class In, class Cell>
MOGE_INLINE void store_tile(Cell&& cell, int64_t num_rows, int num_experts, In* rows) {
  constexpr int W = V::kWidth;
  if constexpr (V::kTransposes) {
    int64_t j = 0;
    for (; j + W <= num_experts && num_rows >= W; j += W) {
      typename V::Reg block[W];
      for (int i = 0; i < W; ++i) block[i] = cell(j + i);
      V::transpose(block);
      for (int i = 0; i < W; ++i) V::store_row(rows + i * int64_t(num_experts) + j, block[i]);
    }
    for (; j < num_experts; j += W) {
      const int columns = int(num_experts - j < W ? num_experts - j : W);
      typename V::Reg block[W];
      for (int i = 0; i < W; ++i) block[i] = i < columns ? cell(j + i) : V::set(0);
      V::transpose(block);
      for (int i = 0; i < W && i < num_rows; ++i) {
        store_part<V>(rows + i * int64_t(num_experts) + j, block[i], columns);
      }
    }
  } else {
    for (int64_t j = 0; j < num_experts; ++j) {
      typename V::Scalar lanes[W] __attribute__((aligned(64)));
      V::store(lanes, cell(j));
      for (int64_t i = 0; i < num_rows && i < W; ++i) {
        from_scalar(lanes[i], &rows[i * num_experts + j]);
      }
    }
  }
}

template <class In>
MOGE_INLINE void clear_row(In* row, int num_experts) {
  for (int j = 0; j < num_experts; ++j) row[j] = In{};
}

// Subnormal numbers are read and written as 0 while this lives: scores below 1e-38 change no
// result above it, and arithmetic on subnormals costs up to 150 cycles an instruction.
struct FlushSubnormals {
#if defined(__SSE2__)
  unsigned saved = _mm_getcsr();
  FlushSubnormals() { _mm_setcsr(saved | 0x8040); }
  ~FlushSubnormals() { _mm_setcsr(saved); }
#endif
};

// One aligned block a call, cut into arrays.
struct Scratch {
  char* block;
  char* next;
  explicit Scratch(size_t bytes) {
    block = next = static_cast<char*>(aligned_alloc(64, (bytes + 63) / 64 * 64 + 64));
    if (block == nullptr) throw std::bad_alloc();
  }
  ~Scratch() { free(block); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  template <class T>
  T* take(size_t count) {
    T* array = reinterpret_cast<T*>(next);
    next += (count * sizeof(T) + 63) / 64 * 64;
    return array;
  }
};
