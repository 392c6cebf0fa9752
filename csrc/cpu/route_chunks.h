// moge::route, forward: chunks of tokens, tile by tile. Included inside an anonymous namespace (see
// kernels_*.cpp).

// Not inlined, so that the plain tile has the registers of the loop for itself.
template <class V, class In>
static __attribute__((noinline)) void route_masked_tile(ForwardTile<V>& tile, int64_t token,
                                                        int64_t num_rows, ChunkSums& sums,
                                                        int64_t* load, int64_t* first_load) {
  route_tile<V, In, false>(tile, token, num_rows, sums, load, first_load);
}

template <class V, class In>
static void route_forward_chunks(const RouteForward& a, int64_t begin, int64_t end) {
  constexpr int64_t kFlushTokens = 64 * kLanes;  // float32 sums of at most 64 terms
  FlushSubnormals flush;
  const int n = a.num_experts;
  const bool wide = compares_scores(a), plain = is_plain(a.wider);
  ForwardTile<V> tile(a);
  alignas(Stencil<V>) char storage[sizeof(Stencil<V>)];
  if (a.groups) tile.stencil = new (storage) Stencil<V>(*a.groups, tile.scratch);
  for (int i = 0; i < n * kLanes; ++i) tile.lanes[i] = 0;
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    ChunkSums sums = {0.0, -1, -1};
    double* importance = a.importance + chunk * n;
    int64_t* load = a.load + chunk * n;
    int64_t* first_load = a.first_load + chunk * n;
    for (int j = 0; j < n; ++j) {
      importance[j] = 0;
      load[j] = 0;
      first_load[j] = 0;
    }
    const int64_t first = chunk * a.chunk_tokens;
    const int64_t rest = a.num_tokens - first;
    const int64_t last = first + (rest < a.chunk_tokens ? rest : a.chunk_tokens);
    for (int64_t token = first; token < last; token += V::kWidth) {
      if (wide) {
        route_wide_tile<V, In>(tile, token, last - token, sums, load, first_load);
      } else if (plain) {
        route_tile<V, In, true>(tile, token, last - token, sums, load, first_load);
      } else {
        route_masked_tile<V, In>(tile, token, last - token, sums, load, first_load);
      }
      const int64_t next = token + V::kWidth;
      if ((next - first) % kFlushTokens == 0 || next >= last)
        flush_lanes(tile.lanes, n, importance);
    }
    a.sums[chunk] = sums;
  }
}
