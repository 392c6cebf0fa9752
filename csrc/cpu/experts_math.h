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

struct Gelu {  // x Phi(x); slope Phi(x) + x phi(x)
  template <class V>
  MOGE_INLINE Point<typename V::Reg> at(typename V::Reg x) {
    if constexpr (sizeof(typename V::Scalar) == 8) {
      return at_double<V>(x);
    } else {
      const auto zero = V::set(0), one = V::set(1);
      const auto negative = V::greater(zero, x);
      const auto magnitude = V::select(negative, V::sub(zero, x), x);
      const auto e = exp_nonpositive<V>(V::mul(V::mul(x, x), V::set(-0.5f)));
      const auto t = V::div(one, V::fma(V::set(0.28284271247461903f), magnitude, one));
      auto q = V::set(kErfc[0]);
      for (int i = 1; i < kErfcTerms; ++i) q = V::fma(q, t, V::set(kErfc[i]));
      const auto tail = V::mul(V::mul(V::mul(q, t), V::set(0.5f)), e);
      const auto phi = V::select(negative, tail, V::sub(one, tail));
      const auto density = V::mul(e, V::set(0.3989422804014327f));
      return {V::mul(x, phi), V::fma(x, density, phi)};
    }
  }

 private:
  template <class V>
  MOGE_INLINE Point<typename V::Reg> at_double(typename V::Reg x) {  // lane by lane, by the library
    alignas(64) double lanes[V::kWidth], values[V::kWidth], slopes[V::kWidth];
    V::store(lanes, x);
    for (int l = 0; l < V::kWidth; ++l) {
      const double phi = 0.5 * erfc(-lanes[l] * 0.7071067811865476);
      values[l] = lanes[l] * phi;
      slopes[l] = phi + lanes[l] * 0.3989422804014327 * exp(-0.5 * lanes[l] * lanes[l]);
    }
    return {V::load(values), V::load(slopes)};
  }
};
