// The expert FFNs: y[t] = sum_i weights[t, i] (w_out act(w_in x[t] + b_in) + b_out).
//
// The matrix products are BLAS's; what is here feeds them and uses their results while they are in
// cache. A task is a run of rows of one expert, and a block of about 1.5 MiB passes through it:
//   forward   gather x -> P = x w_in^T -> P += b_in, H = act(P) -> O = H w_out^T
//             -> weights (O + b_out), written to the token's row
//   backward  gather x and G = grad_y -> Q = G w_out -> in one pass over P and Q: act and its
//             slope, the weight's gradient <Q, H> + <G, b_out>, H *= weight, Q *= weight slope
//             -> grad_w_out += G^T H, grad_w_in += Q^T x -> Q w_in, written to the token's row
// <Q, H> = <G w_out, H> is <G, O>: expert outputs need not be kept, only P.
//
// A token's first choice writes the result's row itself, the others a buffer of (T, k - 1, d);
// `combine` adds them in the order of the choices. So tasks never write to the same place, no
// order of theirs shows in the result, and k = 1 needs no second pass.
//
// What limits it: the products take 90 % of the time or more. They run one thread a task instead
// of all threads a product, since a product of one expert's rows is too small to share.
//
// Included inside an anonymous namespace, after experts_math.h (see experts_*.cpp).

template <class S>
struct ScalarOf {
  using type = S;
};
template <>
struct ScalarOf<BFloat16> {
  using type = float;
};
template <class S>
constexpr bool kIsStored = __is_same(S, typename ScalarOf<S>::type);  // products read S itself

template <class Args>
MOGE_INLINE Gemm<float> gemm_of(const Args& a, float) {
  return a.gemm_float;
}
template <class Args>
MOGE_INLINE Gemm<double> gemm_of(const Args& a, double) {
  return a.gemm_double;
}

// Row-major products: C (m, n) = A (m, k) B (n, k)^T; A (m, k) B (k, n); A (k, m)^T B (k, n).
template <class T>
void product_nt(Gemm<T> gemm, int64_t m, int64_t n, int64_t k, const T* a, const T* b, T* c) {
  gemm('T', 'N', n, m, k, b, k, a, k, T(0), c, n);
}
template <class T>
void product_nn(Gemm<T> gemm, int64_t m, int64_t n, int64_t k, const T* a, const T* b, T* c) {
  gemm('N', 'N', n, m, k, b, n, a, k, T(0), c, n);
}
template <class T>
void product_tn(Gemm<T> gemm, int64_t m, int64_t n, int64_t k, const T* a, const T* b, T beta,
                T* c) {
  gemm('N', 'T', n, m, k, b, n, a, m, beta, c, n);
}

template <class S, class T>
MOGE_INLINE void convert(const S* from, int64_t count, T* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = to_scalar(from[i]);
}

template <class S, class T>
void gather(const S* rows, const int32_t* slots, int64_t count, int top_k, int64_t width, T* out) {
  for (int64_t r = 0; r < count; ++r) {
    convert(rows + slots[r] / top_k * width, width, out + r * width);
  }
}

// The matrix of expert e in Scalar: in place, or converted into `room`.
template <class S, class T>
const T* matrix(const void* stack, int expert, int64_t size, T* room) {
  const S* stored = static_cast<const S*>(stack) + expert * size;
  if constexpr (kIsStored<S>) {
    return stored;
  } else {
    convert(stored, size, room);
    return room;
  }
}

// Where what slot adds to its token goes: the token's own row, or the buffer of later choices.
template <class S>
MOGE_INLINE S* destination(void* rows, void* extra, int32_t slot, int top_k, int64_t width) {
  const int64_t token = slot / top_k, choice = slot % top_k;
  if (choice == 0) return static_cast<S*>(rows) + token * width;
  return static_cast<S*>(extra) + (token * (top_k - 1) + choice - 1) * width;
}

// Sixteen lanes whatever the vector width, so that the sum rounds alike for every instruction set.
template <class T, class U>
MOGE_INLINE T dot(const T* a, const U* b, int64_t count) {
  T lanes[16] = {};
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    for (int l = 0; l < 16; ++l) lanes[l] = fused(a[i + l], to_scalar(b[i + l]), lanes[l]);
  }
  for (int l = 0; i < count; ++i, ++l) lanes[l] = fused(a[i], to_scalar(b[i]), lanes[l]);
  T sum = 0;
  for (int l = 0; l < 16; ++l) sum += lanes[l];
  return sum;
}

// Registers from rows that need not be aligned, and back.
template <class V, class S>
MOGE_INLINE typename V::Reg load(const S* p) {
  if constexpr (V::kTransposes) {
    return V::load_row(p);
  } else {
    alignas(64) typename V::Scalar lanes[V::kWidth];
    for (int l = 0; l < V::kWidth; ++l) lanes[l] = to_scalar(p[l]);
    return V::load(lanes);
  }
}
template <class V, class S>
MOGE_INLINE void store(S* p, typename V::Reg a) {
  if constexpr (V::kTransposes) {
    V::store_row(p, a);
  } else {
    alignas(64) typename V::Scalar lanes[V::kWidth];
    V::store(lanes, a);
    for (int l = 0; l < V::kWidth; ++l) from_scalar(lanes[l], &p[l]);
  }
}

template <class T>
MOGE_INLINE void copy_some(const T* from, int64_t count, T* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = from[i];
}

#include "experts_forward.h"

#include "experts_backward.h"

template <class S>
void combine_rows(const ExpertsCombine& a, int64_t begin, int64_t end) {
  using T = typename ScalarOf<S>::type;
  const int64_t d = a.hidden;
  for (int64_t t = begin; t < end; ++t) {
    const int64_t* experts = a.experts + t * a.top_k;
    S* row = static_cast<S*>(a.rows) + t * d;
    const S* extra = static_cast<const S*>(a.extra) + t * (a.top_k - 1) * d;
    if (experts[0] < 0) {
      for (int64_t j = 0; j < d; ++j) from_scalar(T(0), &row[j]);
    }
    // In pieces that stay in registers and cache, so that bfloat16 is rounded once, at the end.
    constexpr int64_t kPiece = 64;
    for (int64_t j = 0; j < d; j += kPiece) {
      const int64_t count = d - j < kPiece ? d - j : kPiece;
      T sum[kPiece];
      for (int64_t c = 0; c < count; ++c) sum[c] = to_scalar(row[j + c]);
      for (int i = 1; i < a.top_k; ++i) {
        const S* other = extra + (i - 1) * d + j;
        if (experts[i] < 0) continue;
        for (int64_t c = 0; c < count; ++c) sum[c] += to_scalar(other[c]);
      }
      for (int64_t c = 0; c < count; ++c) from_scalar(sum[c], &row[j + c]);
    }
  }
}

template <class S, class Part>
void reduce_parts(const Part* const* parts, int64_t num_parts, int64_t count, S* out) {
  for (int64_t i = 0; i < count; ++i) {
    Part sum = parts[0][i];
    for (int64_t p = 1; p < num_parts; ++p) sum += parts[p][i];
    from_scalar(static_cast<typename ScalarOf<S>::type>(sum), &out[i]);
  }
}

template <class Float, class Double>
struct Experts {
  static size_t scratch_bytes(Dtype dtype, bool backward, int64_t d, int64_t f, int64_t block) {
    const int64_t rows = backward ? 2 * (d + f) : d + 2 * f;
    const int64_t matrices = dtype == Dtype::kBFloat16 ? (backward ? 4 : 1) * d * f : 0;
    const size_t bytes = (block * rows + matrices) * (dtype == Dtype::kFloat64 ? 8 : 4);
    return (bytes + 63) / 64 * 64;
  }

  template <class V, class S>
  static void forward_as(const ExpertsForward& a, const ExpertTask& task, void* scratch) {
    switch (a.activation) {
      case Activation::kGelu:
        return forward_task<Gelu, V, S>(a, task, scratch);
      case Activation::kRelu:
        return forward_task<Relu, V, S>(a, task, scratch);
      case Activation::kSilu:
        return forward_task<Silu, V, S>(a, task, scratch);
    }
  }
  static void forward(const ExpertsForward& a, const ExpertTask& task, void* scratch) {
    switch (a.dtype) {
      case Dtype::kFloat32:
        return forward_as<Float, float>(a, task, scratch);
      case Dtype::kFloat64:
        return forward_as<Double, double>(a, task, scratch);
      case Dtype::kBFloat16:
        return forward_as<Float, BFloat16>(a, task, scratch);
    }
  }

  template <class V, class S>
  static void backward_as(const ExpertsBackward& a, const ExpertTask& task, void* scratch) {
    switch (a.activation) {
      case Activation::kGelu:
        return backward_task<Gelu, V, S>(a, task, scratch);
      case Activation::kRelu:
        return backward_task<Relu, V, S>(a, task, scratch);
      case Activation::kSilu:
        return backward_task<Silu, V, S>(a, task, scratch);
    }
  }
  static void backward(const ExpertsBackward& a, const ExpertTask& task, void* scratch) {
    switch (a.dtype) {
      case Dtype::kFloat32:
        return backward_as<Float, float>(a, task, scratch);
      case Dtype::kFloat64:
        return backward_as<Double, double>(a, task, scratch);
      case Dtype::kBFloat16:
        return backward_as<Float, BFloat16>(a, task, scratch);
    }
  }

  static void combine(const ExpertsCombine& a, int64_t begin, int64_t end) {
    switch (a.dtype) {
      case Dtype::kFloat32:
        return combine_rows<float>(a, begin, end);
      case Dtype::kFloat64:
        return combine_rows<double>(a, begin, end);
      case Dtype::kBFloat16:
        return combine_rows<BFloat16>(a, begin, end);
    }
  }

  template <class Part>
  static void reduce_as(Dtype dtype, const Part* const* parts, int64_t num_parts, int64_t count,
                        void* out) {
    switch (dtype) {
      case Dtype::kFloat32:
        return reduce_parts(parts, num_parts, count, static_cast<float*>(out));
      case Dtype::kFloat64:
        return reduce_parts(parts, num_parts, count, static_cast<double*>(out));
      case Dtype::kBFloat16:
        return reduce_parts(parts, num_parts, count, static_cast<BFloat16*>(out));
    }
  }
  static void reduce(Dtype dtype, const void* const* parts, int64_t num_parts, int64_t count,
                     void* out) {
    if (dtype == Dtype::kFloat64) {
      return reduce_as(dtype, reinterpret_cast<const double* const*>(parts), num_parts, count, out);
    }
    reduce_as(dtype, reinterpret_cast<const float* const*>(parts), num_parts, count, out);
  }
  static void reduce_bias(Dtype dtype, const double* const* parts, int64_t num_parts, int64_t count,
                          void* out) {
    reduce_as(dtype, parts, num_parts, count, out);
  }
};
