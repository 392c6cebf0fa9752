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

// Sums of the group norms of scores z = factor * e whose e^2 were filtered, a float64 value a lane.
// At most four are added in float32 first: equal norms (a score near 0 has g = sqrt(eps)) would
// round alike in longer sums.
template <class V, int H>
static __attribute__((noinline)) void sum_norms(const Stencil<V>& s, typename V::Reg factor,
                                                double* sums) {
  using Reg = typename V::Reg;
  typename V::Wide total = V::wide_zero();
  Reg few = V::set(0);
  const int last = s.groups.group_cols - 1;
  const Reg scale = V::mul(V::mul(factor, factor), V::set(s.scale)),
            eps = V::set(typename V::Scalar(kEps));
  Stencil<V>::template for_groups<H>(s, [&](int j, Reg energy) {
    few = V::add(few, V::sqrt(V::fma(energy, scale, eps)));
    if ((j & 3) == 3 || j == last) {
      V::add_wide(total, few);
      few = V::set(0);
    }
  });
  V::store_wide(sums, total);
}

// For scores z = factor * e: grad[e] = norm_grad * factor^2 * e * sum_p G[e in p] / g[p], and
// returns sum grad[e] e, which is the sum over the experts of dL/dz z.
template <class V, int H>
static __attribute__((noinline)) typename V::Reg norm_gradient(const Stencil<V>& s,
                                                               const typename V::Scalar* tile,
                                                               typename V::Reg factor,
                                                               typename V::Scalar norm_grad,
                                                               typename V::Scalar* grad) {
  using Reg = typename V::Reg;
  constexpr int W = V::kWidth;
  typename V::Scalar* inverse = s.inverse;
  const Reg scale = V::mul(V::mul(factor, factor), V::set(s.scale));
  const Reg upstream = V::mul(scale, V::set(norm_grad)), eps = V::set(typename V::Scalar(kEps));
  Stencil<V>::template for_groups<H>(s, [&](int, Reg energy) {
    V::store(inverse, V::div(upstream, V::sqrt(V::fma(energy, scale, eps))));
    inverse += W;
  });
  Reg dot = V::set(0);
  Stencil<V>::template for_experts<H>(s, [&](int e, Reg sum) {
    const Reg score = V::load(tile + e * W);
    const Reg value = V::mul(sum, score);
    dot = V::fma(value, score, dot);
    V::store(grad + e * W, value);
  });
  return dot;
}

// e = e^(x - maximum) of a tile, in place; its squares filtered along the rows of the map, if there
// is one; next.ask(j) and use(e) at each step.
template <class V, int H, class Next, class Use>
MOGE_INLINE void exponentiate(typename V::Scalar* tile, int num_experts, typename V::Reg maximum,
                              const Stencil<V>* stencil, Next next, Use&& use) {
  using Reg = typename V::Reg;
  constexpr int W = V::kWidth;
  const auto exponential = [&](int j) {
    next.ask(j);
    const Reg e = exp_nonpositive<V>(V::sub(V::load(tile + j * W), maximum));
    V::store(tile + j * W, e);
    use(e);
    return e;
  };
  if (stencil) {
    Stencil<V>::template filter_rows<H>(*stencil, [&](int j) {
      const Reg e = exponential(j);
      return V::mul(e, e);
    });
  } else {
    for (int j = 0; j < num_experts; ++j) exponential(j);
  }
}
