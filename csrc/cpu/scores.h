// Scores of another function than softmax, and their energies (docs/method.md "Wider routing").
//
// Included inside an anonymous namespace, after norms.h (see kernels_*.cpp).

constexpr double kSumEps = 1e-20;  // added to a sum of scores before it divides

template <class V>
struct Score {
  typename V::Reg value, slope;  // f(x), f'(x)
};

// log(1 + t) for 0 <= t <= 1, as 2 atanh(s) with s = t / (2 + t) <= 1/3, whose series in s^2 ends
// where the next term is below half a unit: 8 terms in float32, 18 in float64.
template <class V>
MOGE_INLINE typename V::Reg log_one_plus(typename V::Reg t) {
  using Scalar = typename V::Scalar;
  constexpr int kTerms = sizeof(Scalar) == sizeof(float) ? 8 : 18;
  const auto s = V::div(t, V::add(V::set(2), t)), s2 = V::mul(s, s);
  auto p = V::set(Scalar(1.0 / (2 * kTerms - 1)));
  for (int i = kTerms - 2; i >= 0; --i) p = V::fma(p, s2, V::set(Scalar(1.0 / (2 * i + 1))));
  return V::mul(V::add(s, s), p);
}

// NaN stays NaN: min and max return their second operand where one is.
template <class V, ScoreFunction kF>
MOGE_INLINE Score<V> score_of(typename V::Reg x) {
  const auto one = V::set(1), zero = V::set(0);
  const auto positive = V::greater(x, zero);
  const auto below = V::min(x, V::sub(zero, x));  // -|x|
  if constexpr (kF == ScoreFunction::kSigmoid) {
    const auto t = exp_nonpositive<V>(below), inverse = V::div(one, V::add(one, t));
    const auto value = V::mul(V::select(positive, one, t), inverse);
    return {value, V::mul(value, V::mul(V::select(positive, t, one), inverse))};
  } else {
    // sqrt(log(1 + e^x)); its slope is sigmoid(x) / (2 z). Below -40 z = e^(x / 2), where e^x could
    // underflow.
    const auto half = V::set(typename V::Scalar(0.5));
    const auto root = exp_nonpositive<V>(V::mul(half, below)), t = V::mul(root, root);
    const auto low = V::greater(V::set(-40), x);
    const auto softplus = V::add(V::max(zero, x), log_one_plus<V>(t));
    const auto value = V::select(low, root, V::sqrt(softplus));
    const auto logistic = V::div(V::select(positive, one, t), V::add(one, t));
    const auto slope = V::div(V::mul(half, logistic), value);
    return {value, V::select(low, V::mul(half, root), slope)};
  }
}

// Calls body with the function, which is not softmax, as a compile-time constant.
template <ScoreFunction kF>
struct Function {
  static constexpr ScoreFunction value = kF;
};
template <class Body>
MOGE_INLINE void with_function(ScoreFunction function, Body&& body) {
  if (function == ScoreFunction::kSigmoid) return body(Function<ScoreFunction::kSigmoid>{});
  return body(Function<ScoreFunction::kSqrtSoftplus>{});
}

// x becomes z = f(x) of a tile, in place; returns the sums of z.
template <class V, ScoreFunction kF>
static __attribute__((noinline)) typename V::Reg activate(typename V::Scalar* tile, int num_experts,
                                                          Ahead<V, 0> next) {
  Chains<V> sums;
  for (int j = 0; j < num_experts; ++j, tile += V::kWidth) {
    next.ask();
    const auto z = score_of<V, kF>(V::load(tile)).value;
    V::store(tile, z);
    sums.add(z);
  }
  return sums.total();
}

// The same, with f'(x) in `slopes`.
template <class V, ScoreFunction kF>
static __attribute__((noinline)) void activate_with_slopes(typename V::Scalar* tile,
                                                           typename V::Scalar* slopes,
                                                           int num_experts, Ahead<V, 1> result) {
  for (int j = 0; j < num_experts; ++j, tile += V::kWidth, slopes += V::kWidth) {
    result.ask();
    const auto score = score_of<V, kF>(V::load(tile));
    V::store(tile, score.value);
    V::store(slopes, score.slope);
  }
}

// What scores up to `largest` are multiplied by before they are squared, so that the squares do not
// underflow. Their norm divides out again.
template <class V>
MOGE_INLINE typename V::Reg energy_factor(typename V::Reg largest) {
  const auto smallest = V::set(std::numeric_limits<typename V::Scalar>::min());
  return V::div(V::set(1), V::max(smallest, largest));
}

// Fills the stencil with the squares of a tile of scores, kScaled: of factor times them; returns
// their sums then.
template <class V, int H, bool kScaled>
static __attribute__((noinline)) typename V::Reg filter_squares(const Stencil<V>& stencil,
                                                                const typename V::Scalar* tile,
                                                                typename V::Reg factor) {
  auto energy = V::set(0);
  Stencil<V>::template filter_rows<H>(stencil, [&](int64_t j) {
    auto z = V::load(tile + j * V::kWidth);
    if constexpr (kScaled) {
      z = V::mul(z, factor);
      energy = V::fma(z, z, energy);
    }
    return V::mul(z, z);
  });
  return energy;
}
