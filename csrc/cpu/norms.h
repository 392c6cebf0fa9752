// Group norms of a tile of scores and their gradient, and the exponentials that feed the filter.
//
// Roots and quotients are the correctly rounded instructions. An approximation of 1 / sqrt refined
// by a Newton step takes 2.5 % more instructions, and its table of first guesses is the vendor's
// own: other bits on another processor. AVX2, Zen 3, N=64, k=2, h=3, the fastest of 400 runs of
// 2048 tokens: forward 88 ns a token either way, backward 89 with the approximation, 93 without. A
// first guess from the bits of the number and a polynomial, the same everywhere, took 97 and 3 %
// more instructions.
//
// Included inside an anonymous namespace (see kernels_*.cpp).

// A sum in four chains, term j in chain j mod 4: short chains round less than one long one.
template <class V>
struct Chains {
  using Reg = typename V::Reg;
  Reg parts[4];
  inline __attribute__((always_inline)) Chains() {
    for (auto& part : parts) part = V::set(0);
  }
  inline __attribute__((always_inline)) void add(Reg a) {
    const Reg sum = V::add(parts[0], a);
    for (int i = 0; i < 3; ++i) parts[i] = parts[i + 1];
    parts[3] = sum;
  }
  inline __attribute__((always_inline)) Reg total() const {
    return V::add(V::add(parts[0], parts[1]), V::add(parts[2], parts[3]));
  }
};

// 1 / energy, which unit energy multiplies the squares by; of no energy at all 1: such norms are
// sqrt(eps). NaN stays NaN.
template <class V>
MOGE_INLINE typename V::Reg reciprocal(typename V::Reg energy) {
  return V::select(V::greater(energy, V::set(0)), V::div(V::set(1), energy),
                   V::add(energy, V::set(1)));
}

// Sums of the group norms of scores z = factor * e whose e^2 were filtered, a float64 value a lane;
// `squared` is factor^2.
// At most four are added in float32 first: equal norms (a score near 0 has g = sqrt(eps)) would
// round alike in longer sums.
template <class V, int H>
static __attribute__((noinline)) void sum_norms(const Stencil<V>& s, typename V::Reg squared,
                                                double* sums) {
  using Reg = typename V::Reg;
  constexpr int W = V::kWidth;
  typename V::Wide total = V::wide_zero();
  const Reg scale = V::mul(squared, V::set(s.scale)), eps = V::set(typename V::Scalar(kEps));
  const int64_t length = int64_t(s.groups.group_cols) * W;
  Stencil<V>::template for_group_rows<H>(s, [&](auto&& energy) {
    const auto norm = [&](int64_t j) { return V::sqrt(V::fma(energy(j), scale, eps)); };
    int64_t j = 0;
    for (; j + 4 * W <= length; j += 4 * W) {
      const Reg two = V::add(norm(j), norm(j + W));
      V::add_wide(total, V::add(V::add(two, norm(j + 2 * W)), norm(j + 3 * W)));
    }
    if (j == length) return;
    Reg few = norm(j);
    while ((j += W) < length) few = V::add(few, norm(j));
    V::add_wide(total, few);
  });
  V::store_wide(sums, total);
}

// For scores z = factor * e: grad[e] = norm_grad * factor^2 * e * sum_p G[e in p] / g[p], and
// returns sum grad[e] e, which is the sum over the experts of dL/dz z.
//
// With unit energy factor^2 is 1 / sum e^2, which depends on e: grad[e] = dL/de = norm_grad *
// factor^2 * e * (sum_p G[e in p] / g[p] - factor^2 * sum_p E[p] / g[p]), E[p] the energy of a
// group. The norms do not change with the size of e, so sum grad[e] e is 0. There e is `scaled`
// times the tile, and grad is by the tile.
enum class Energy { kAsItIs, kUnit, kScaledUnit };
template <class V, int H, Energy kEnergy>
static __attribute__((noinline)) typename V::Reg norm_gradient(
    const Stencil<V>& s, const typename V::Scalar* tile, typename V::Reg squared,
    typename V::Reg scaled, typename V::Reg norm_grad, typename V::Scalar* grad) {
  using Reg = typename V::Reg;
  constexpr int W = V::kWidth;
  typename V::Scalar* inverse = s.inverse;
  const Reg scale = V::mul(squared, V::set(s.scale));
  const Reg upstream = V::mul(scale, norm_grad), eps = V::set(typename V::Scalar(kEps));
  Reg spread = V::set(0), dot = V::set(0);
  Stencil<V>::template for_groups<H>(s, [&](Reg energy) {
    const Reg quotient = V::div(upstream, V::sqrt(V::fma(energy, scale, eps)));
    V::store(inverse, quotient);
    if constexpr (kEnergy != Energy::kAsItIs) spread = V::fma(quotient, energy, spread);
    inverse += W;
  });
  spread = V::mul(spread, squared);
  Stencil<V>::template for_experts<H>(s, [&](int64_t e, Reg sum) {
    Reg score = V::load(tile + e * W);
    if constexpr (kEnergy != Energy::kAsItIs) sum = V::sub(sum, spread);
    if constexpr (kEnergy == Energy::kScaledUnit) score = V::mul(score, scaled);
    Reg value = V::mul(sum, score);
    if constexpr (kEnergy == Energy::kScaledUnit) value = V::mul(value, scaled);
    if constexpr (kEnergy == Energy::kAsItIs) dot = V::fma(value, score, dot);
    V::store(grad + e * W, value);
  });
  return dot;
}

// e = e^(x - maximum) of a tile, in place; its squares filtered along the rows of the map, if there
// is one; next.ask() and use(e) at each step.
template <class V, int H, class Next, class Use>
MOGE_INLINE void exponentiate(typename V::Scalar* tile, int num_experts, typename V::Reg maximum,
                              const Stencil<V>* stencil, Next next, Use&& use) {
  using Reg = typename V::Reg;
  const auto exponential = [&] {
    next.ask();
    const Reg e = exp_nonpositive<V>(V::sub(V::load(tile), maximum));
    V::store(tile, e);
    tile += V::kWidth;
    use(e);
    return e;
  };
  if (stencil) {
    Stencil<V>::template filter_rows<H>(*stencil, [&](int64_t) {
      const Reg e = exponential();
      return V::mul(e, e);
    });
  } else {
    for (int j = 0; j < num_experts; ++j) exponential();
  }
}
