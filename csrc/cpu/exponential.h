// e^x for x <= 0, the range of a softmax and of the activations.
//
// Included inside an anonymous namespace, after the vector types (see kernels_*.cpp).

// e^d = 2^y = 2^(m / 8) 2^f: m is the integer nearest 8 y, the first power is read from a register,
// and |f| <= 1 / 16 leaves a cubic, fitted to a relative error of 2.7e-8. Half of the
// multiplications of a range of one half without a table, and those are what the processor does
// fewest of at a time.
template <class V>
MOGE_INLINE typename V::Reg exp_nonpositive_float(typename V::Reg d) {
  const auto log2e = V::set(1.44269504f);
  d = V::max(V::set(-88.f), d);  // gives 2^-127, whose bits are those of 0
  // Adding 1.5 2^20 rounds d log2(e) to eighths and leaves their number in the low bits.
  const auto magic = V::set(1572864.f);
  const auto t = V::fma(d, log2e, magic);
  const auto f = V::fma(d, log2e, V::sub(magic, t));
  auto p = V::fma(V::set(0.0554962232708931f), f, V::set(0.2402576357126236f));
  p = V::mul(V::fma(p, f, V::set(0.6931472420692444f)), f);
  const auto power = V::eighth_power(t);
  return V::fma(power, p, power);
}

// Taylor's series to r^13 on |r| <= ln 2 / 2: remainder below 5e-18.
template <class V>
MOGE_INLINE typename V::Reg exp_nonpositive_double(typename V::Reg d) {
  constexpr double kTaylor[] = {1. / 6227020800,
                                1. / 479001600,
                                1. / 39916800,
                                1. / 3628800,
                                1. / 362880,
                                1. / 40320,
                                1. / 5040,
                                1. / 720,
                                1. / 120,
                                1. / 24,
                                1. / 6,
                                1. / 2,
                                1.,
                                1.};
  d = V::max(V::set(-709.), d);  // rounds to 2^-1023, which pow2 makes 0
  // Adding the magic number rounds d log2(e) to an integer n and leaves n + 1023 in the low bits.
  const auto magic = V::set(6755399441055744. + 1023.);
  const auto t = V::fma(d, V::set(1.4426950408889634), magic);
  const auto n = V::sub(t, magic);
  auto r = V::fma(n, V::set(-6.93147180369123816490e-01), d);
  r = V::fma(n, V::set(-1.90821492927058770002e-10), r);
  auto p = V::set(kTaylor[0]);
  for (size_t i = 1; i < sizeof(kTaylor) / sizeof(double); ++i) {
    p = V::fma(p, r, V::set(kTaylor[i]));
  }
  return V::mul(p, V::pow2(t));
}

// e^d for d <= 0; 0 where it would be subnormal. NaN stays NaN.
template <class V>
MOGE_INLINE typename V::Reg exp_nonpositive(typename V::Reg d) {
  if constexpr (sizeof(typename V::Scalar) == sizeof(float)) {
    return exp_nonpositive_float<V>(d);
  } else {
    return exp_nonpositive_double<V>(d);
  }
}
