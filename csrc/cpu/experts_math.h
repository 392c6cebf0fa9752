// Values and slopes of the activations, on a register of any vector type.
//
// Included inside an anonymous namespace, after tile.h (see experts_*.cpp).

template <class Reg>
struct Point {
  Reg value, slope;
};

struct Relu {
  template <class V>
  MOGE_INLINE Point<typename V::Reg> at(typename V::Reg x) {
    // x <= 0 as x < the smallest positive number: NaN passes, and lets the gradient pass, as in
    // torch.
    const auto smallest = std::numeric_limits<typename V::Scalar>::denorm_min();
    return {V::max(V::set(0), x), V::select(V::greater(V::set(smallest), x), V::set(0), V::set(1))};
  }
};

struct Silu {  // x s(x) with the logistic function s; slope s (1 + x (1 - s))
  template <class V>
  MOGE_INLINE Point<typename V::Reg> at(typename V::Reg x) {
    const auto zero = V::set(0), one = V::set(1);
    const auto negative = V::greater(zero, x);
    const auto e = exp_nonpositive<V>(V::select(negative, x, V::sub(zero, x)));
    const auto s = V::div(V::select(negative, e, one), V::add(one, e));
    return {V::mul(x, s), V::mul(s, V::fma(x, V::sub(one, s), one))};
  }
};

// Phi(-|x|) = e^(-x^2 / 2) t q(t) / 2 with t = 1 / (1 + 0.4 |x| / sqrt 2): the complementary
// error function as in Abramowitz & Stegun 7.1.26, with a polynomial of higher degree fitted to
// the least maximal relative error, 5.8e-8, on |x| <= 13.4.
constexpr int kErfcTerms = 9;
constexpr float kErfc[kErfcTerms] = {
    4.026747889351189e-2f,  -1.3547100427168768e-1f, 7.384197145696837e-2f,
    9.972976866561131e-2f,  7.150818833705623e-2f,   1.9696307206453792e-1f,
    2.0095857329721584e-1f, 2.2657571102482274e-1f,  2.2562629811032744e-1f};

// The same in float64: Phi(-m) = e^(-m^2 / 2) q(s) / (m + 4) with s = (m - 4) / (m + 4). q
// interpolates at Chebyshev's points of 0 <= m <= 40, relative error 1.3e-16.
constexpr int kTailTerms = 24;
constexpr double kTail[kTailTerms] = {
    -7.227674920350449e-10, -2.511372928694166e-09,  1.917695265350152e-09,
    1.9587727444446167e-08, 1.32610923300199e-08,    -8.536991353342608e-08,
    -1.549271323887327e-07, 2.717809948345e-07,      1.0215205012909071e-06,
    -6.296896838092998e-07, -5.920156161474508e-06,  7.166661392310459e-07,
    3.514468067075562e-05,  -1.9082589727909575e-06, -0.00023109493413064064,
    0.0001333443125592139,  0.0016308184574697466,   -0.003479692367412914,
    -0.007540188966719381,  0.06039657489093769,     -0.18652185795965745,
    0.38713740074221453,    -0.6078966419718921,     0.7552851304157515};

struct Gelu {  // x Phi(x); slope Phi(x) + x phi(x)
  template <class V>
  MOGE_INLINE Point<typename V::Reg> at(typename V::Reg x) {
    const auto zero = V::set(0), one = V::set(1);
    const auto negative = V::greater(zero, x);
    const auto magnitude = V::select(negative, V::sub(zero, x), x);
    typename V::Reg e, tail, scale;  // e^(-x^2 / 2), Phi(-|x|), 1 / sqrt(2 pi)
    if constexpr (sizeof(typename V::Scalar) == sizeof(float)) {
      e = exp_nonpositive<V>(V::mul(V::mul(x, x), V::set(-0.5f)));
      const auto t = V::div(one, V::fma(V::set(0.28284271247461903f), magnitude, one));
      auto q = V::set(kErfc[0]);
      for (int i = 1; i < kErfcTerms; ++i) q = V::fma(q, t, V::set(kErfc[i]));
      tail = V::mul(V::mul(V::mul(q, t), V::set(0.5f)), e);
      scale = V::set(0.3989422804014327f);
    } else {
      const auto m = V::min(V::set(40.), magnitude);  // beyond it e is 0; NaN stays NaN
      // The square's rounding error counts where the square is large: e^-(s + d) = e^-s (1 - d).
      const auto square = V::mul(m, m), error = V::fma(m, m, V::sub(zero, square));
      e = exp_nonpositive<V>(V::mul(square, V::set(-0.5)));
      e = V::fma(e, V::mul(error, V::set(-0.5)), e);
      const auto inverse = V::div(one, V::add(m, V::set(4.)));
      const auto s = V::mul(V::sub(m, V::set(4.)), inverse);
      auto q = V::set(kTail[0]);
      for (int i = 1; i < kTailTerms; ++i) q = V::fma(q, s, V::set(kTail[i]));
      tail = V::mul(V::mul(q, inverse), e);
      scale = V::set(0.3989422804014327);
    }
    const auto phi = V::select(negative, tail, V::sub(one, tail));
    return {V::mul(x, phi), V::fma(x, V::mul(e, scale), phi)};
  }
};
