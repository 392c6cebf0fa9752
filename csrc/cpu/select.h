// Top-k of a tile by compare and blend: every lane keeps its k best in descending order and each
// expert is inserted in turn. A later expert must be strictly greater to move up, so of equal
// values the lower index comes first.
//
// Included inside an anonymous namespace (see kernels_*.cpp).

constexpr int kMaxInserted = 8;  // beyond it the insertion costs more than a sort of each row

// indices are kept as Scalar (exact up to 2^24), so that one kind of blend serves both.
template <class V, int K>
static __attribute__((noinline)) void insert_top(const typename V::Scalar* tile, int num_experts,
                                                 typename V::Scalar* values,
                                                 typename V::Scalar* indices) {
  using Reg = typename V::Reg;
  constexpr int W = V::kWidth;
  Reg best[K], at[K];
  for (int i = 0; i < K; ++i) {
    best[i] = V::set(-__builtin_inff());
    at[i] = V::set(0);
  }
  Reg index = V::set(0);
  for (const auto* end = tile + int64_t(num_experts) * W; tile < end; tile += W) {
    const Reg value = V::load(tile);
    typename V::Mask above[K];
    for (int i = 0; i < K; ++i) above[i] = V::greater(value, best[i]);
    for (int i = K - 1; i > 0; --i) {
      best[i] = V::max(best[i], V::min(best[i - 1], value));
      at[i] = V::select(above[i - 1], at[i - 1], V::select(above[i], index, at[i]));
    }
    best[0] = V::max(best[0], value);
    at[0] = V::select(above[0], index, at[0]);
    index = V::add(index, V::set(1));
  }
  for (int i = 0; i < K; ++i) {
    V::store(values + i * W, best[i]);
    V::store(indices + i * W, at[i]);
  }
}

// Selects lane `lane` alone, for any k and any values; NaN ranks as -inf.
template <class V>
static __attribute__((noinline)) void select_lane(const typename V::Scalar* tile, int num_experts,
                                                  int top_k, int lane, typename V::Scalar* row,
                                                  int32_t* order, typename V::Scalar* values,
                                                  typename V::Scalar* indices) {
  constexpr int W = V::kWidth;
  for (int j = 0; j < num_experts; ++j) row[j] = tile[j * W + lane];
  select_any(row, num_experts, top_k, order);
  for (int i = 0; i < top_k; ++i) {
    values[i * W + lane] = row[order[i]];
    indices[i * W + lane] = typename V::Scalar(order[i]);
  }
}

template <class V>
MOGE_INLINE void select_tile(const typename V::Scalar* tile, int num_experts, int top_k,
                             typename V::Scalar* row, int32_t* order, typename V::Scalar* values,
                             typename V::Scalar* indices) {
  switch (top_k) {
    case 1:
      return insert_top<V, 1>(tile, num_experts, values, indices);
    case 2:
      return insert_top<V, 2>(tile, num_experts, values, indices);
    case 3:
      return insert_top<V, 3>(tile, num_experts, values, indices);
    case 4:
      return insert_top<V, 4>(tile, num_experts, values, indices);
    case 5:
      return insert_top<V, 5>(tile, num_experts, values, indices);
    case 6:
      return insert_top<V, 6>(tile, num_experts, values, indices);
    case 7:
      return insert_top<V, 7>(tile, num_experts, values, indices);
    case 8:
      return insert_top<V, 8>(tile, num_experts, values, indices);
    default:
      for (int lane = 0; lane < V::kWidth; ++lane) {
        select_lane<V>(tile, num_experts, top_k, lane, row, order, values, indices);
      }
  }
}

// Selects lane `lane` alone among the best ranges.
template <class V>
static __attribute__((noinline)) void select_lane_of_ranges(const typename V::Scalar* tile,
                                                            int num_experts, int top_k,
                                                            const Wider& wider, int lane,
                                                            typename V::Scalar* row, int32_t* order,
                                                            typename V::Scalar* values,
                                                            typename V::Scalar* indices) {
  constexpr int W = V::kWidth;
  for (int j = 0; j < num_experts; ++j) row[j] = tile[j * W + lane];
  select_ranges(row, num_experts, top_k, wider.num_groups, wider.top_groups, order);
  for (int i = 0; i < top_k; ++i) {
    values[i * W + lane] = row[order[i]];
    indices[i * W + lane] = typename V::Scalar(order[i]);
  }
}

// The same for a tile of finite keys: those of ranges that are not chosen become -inf in it.
// `ranks`: (num_groups, W). Lanes of `exempt` keep their keys, for they may hold -inf themselves.
template <class V>
static __attribute__((noinline)) void close_ranges(typename V::Scalar* tile, int num_experts,
                                                   int top_k, const Wider& wider, unsigned exempt,
                                                   typename V::Scalar* ranks,
                                                   typename V::Scalar* row, int32_t* order,
                                                   typename V::Scalar* values,
                                                   typename V::Scalar* indices) {
  constexpr int W = V::kWidth;
  const int width = num_experts / wider.num_groups, best = top_k / wider.top_groups;
  for (int g = 0; g < wider.num_groups; ++g) {
    select_tile<V>(tile + g * width * W, width, best, row, order, values, indices);
    auto rank = V::load(values);
    for (int i = 1; i < best; ++i) rank = V::add(rank, V::load(values + i * W));
    V::store(ranks + g * W, rank);
  }
  select_tile<V>(ranks, wider.num_groups, wider.top_groups, row, order, values, indices);
  for (int i = 0; i < wider.num_groups * W; ++i) {
    ranks[i] = exempt >> i % W & 1 ? 0 : -__builtin_inff();
  }
  for (int i = 0; i < wider.top_groups * W; ++i) ranks[int(indices[i]) * W + i % W] = 0;
  for (int64_t j = 0; j < num_experts; ++j) {
    V::store(tile + j * W, V::add(V::load(tile + j * W), V::load(ranks + j / width * W)));
  }
}
