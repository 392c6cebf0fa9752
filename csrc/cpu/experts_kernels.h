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

// Sixteen of P += b_in, rounded to what is stored, and of H = act(P).
template <class Act, class V, class S, class T>
MOGE_INLINE void activate16(const T* pre, const S* bias, S* kept, T* h) {
  for (int j = 0; j < 16; j += V::kWidth) {
    typename V::Reg p = load<V>(pre + j);
    if (bias != nullptr) p = V::add(p, load<V>(bias + j));
    store<V>(kept + j, p);
    if constexpr (!kIsStored<S>) p = load<V>(kept + j);
    store<V>(h + j, Act::template at<V>(p).value);
  }
}

template <class Act, class V, class S, class T>
void activate(int64_t rows, int64_t width, const T* pre, const S* bias, S* kept, T* h) {
  S unkept[16];
  for (int64_t r = 0; r < rows; ++r, pre += width, h += width) {
    S* row = kept ? kept + r * width : unkept;
    int64_t j = 0;
    for (; j + 16 <= width; j += 16) {
      activate16<Act, V>(pre + j, bias ? bias + j : nullptr, kept ? row + j : row, h + j);
    }
    if (const int64_t rest = width - j) {
      T some_pre[16] = {}, some_h[16];
      S some_bias[16] = {}, some_kept[16];
      copy_some(pre + j, rest, some_pre);
      if (bias) copy_some(bias + j, rest, some_bias);
      activate16<Act, V>(some_pre, bias ? some_bias : nullptr, some_kept, some_h);
      if (kept) copy_some(some_kept, rest, row + j);
      copy_some(some_h, rest, h + j);
    }
  }
}

template <class Act, class V, class S>
void forward_task(const ExpertsForward& a, const ExpertTask& task, void* scratch) {
  using T = typename ScalarOf<S>::type;
  const int64_t d = a.hidden, f = a.ffn, rows = task.rows;
  const Gemm<T> gemm = gemm_of(a, T());
  T* x = static_cast<T*>(scratch);
  T* h = x + rows * d;
  T* pre = h + rows * f;
  T* room = pre + rows * f;
  const int32_t* slots = a.slots + task.begin;
  gather(static_cast<const S*>(a.x), slots, rows, a.top_k, d, x);
  const T* w_in = matrix<S>(a.w_in, task.expert, f * d, room);
  product_nt(gemm, rows, f, d, x, w_in, pre);
  S* kept = a.activations ? static_cast<S*>(a.activations) + task.begin * f : nullptr;
  const S* b_in = a.b_in ? static_cast<const S*>(a.b_in) + task.expert * f : nullptr;
  activate<Act, V>(rows, f, pre, b_in, kept, h);
  const T* w_out = matrix<S>(a.w_out, task.expert, f * d, room);
  T* out = x;
  product_nt(gemm, rows, d, f, h, w_out, out);
  const S* b_out = a.b_out ? static_cast<const S*>(a.b_out) + task.expert * d : nullptr;
  for (int64_t r = 0; r < rows; ++r, out += d) {
    const T weight = static_cast<const T*>(a.weights)[slots[r]];
    S* y = destination<S>(a.y, a.extra, slots[r], a.top_k, d);
    if (b_out != nullptr) {
      for (int64_t j = 0; j < d; ++j) from_scalar(weight * (out[j] + to_scalar(b_out[j])), &y[j]);
    } else {
      for (int64_t j = 0; j < d; ++j) from_scalar(weight * out[j], &y[j]);
    }
  }
}

// Sixteen of a row between the products: q holds G w_out and becomes weight act'(P) times it, h
// becomes weight act(P); sums gains (G w_out) act(P) lane by lane.
template <class Act, class V, class S, class T>
MOGE_INLINE void activate_backward16(const S* pre, typename V::Reg weight, T* q, T* h,
                                     typename V::Reg* sums) {
  for (int j = 0; j < 16; j += V::kWidth) {
    const auto point = Act::template at<V>(load<V>(pre + j));
    const typename V::Reg g = load<V>(q + j);
    sums[j / V::kWidth] = V::fma(g, point.value, sums[j / V::kWidth]);
    store<V>(h + j, V::mul(weight, point.value));
    store<V>(q + j, V::mul(g, V::mul(weight, point.slope)));
  }
}

// A whole row; returns <G w_out, act(P)>, added in sixteen lanes as `dot` does.
template <class Act, class V, class S, class T>
MOGE_INLINE T activate_backward(int64_t width, const S* pre, T weight, T* q, T* h) {
  typename V::Reg sums[16 / V::kWidth];
  for (auto& sum : sums) sum = V::set(0);
  const typename V::Reg w = V::set(weight);
  int64_t j = 0;
  for (; j + 16 <= width; j += 16) activate_backward16<Act, V>(pre + j, w, q + j, h + j, sums);
  if (const int64_t rest = width - j) {
    S some_pre[16] = {};
    T some_q[16] = {}, some_h[16];
    copy_some(pre + j, rest, some_pre);
    copy_some(q + j, rest, some_q);
    activate_backward16<Act, V>(some_pre, w, some_q, some_h, sums);
    copy_some(some_q, rest, q + j);
    copy_some(some_h, rest, h + j);
  }
  alignas(64) T lanes[16];
  for (int l = 0; l < 16; l += V::kWidth) V::store(lanes + l, sums[l / V::kWidth]);
  T sum = 0;
  for (int l = 0; l < 16; ++l) sum += lanes[l];
  return sum;
}

template <class T>
MOGE_INLINE void add_to(double* sums, const T* row, T weight, int64_t count) {
  for (int64_t j = 0; j < count; ++j) sums[j] += double(weight * row[j]);
}

// Rows [begin, begin + rows) of a segment: everything but the choice of where gradients go.
template <class Act, class V, class S, class T>
void backward_block(const ExpertsBackward& a, int expert, int64_t begin, int64_t rows,
                    const T* w_in, const T* w_out, T beta, T* grad_w_in, T* grad_w_out,
                    double* bias_sums, T* scratch) {
  const int64_t d = a.hidden, f = a.ffn;
  const Gemm<T> gemm = gemm_of(a, T());
  T* x = scratch;
  T* g = x + rows * d;
  T* q = g + rows * d;
  T* h = q + rows * f;
  const int32_t* slots = a.slots + begin;
  const S* pre = static_cast<const S*>(a.activations) + begin * f;
  gather(static_cast<const S*>(a.grad_y), slots, rows, a.top_k, d, g);
  product_nn(gemm, rows, f, d, g, w_out, q);
  const S* b_out = a.b_out ? static_cast<const S*>(a.b_out) + expert * d : nullptr;
  for (int64_t r = 0; r < rows; ++r) {
    const T weight = static_cast<const T*>(a.weights)[slots[r]];
    T grad = activate_backward<Act, V>(f, pre + r * f, weight, q + r * f, h + r * f);
    if (b_out != nullptr) {
      grad += dot(g + r * d, b_out, d);
      add_to(bias_sums, q + r * f, T(1), f);
      add_to(bias_sums + f, g + r * d, weight, d);
    }
    static_cast<T*>(a.grad_weights)[slots[r]] = grad;
  }
  product_tn(gemm, d, f, rows, g, h, beta, grad_w_out);
  gather(static_cast<const S*>(a.x), slots, rows, a.top_k, d, x);
  product_tn(gemm, f, d, rows, q, x, beta, grad_w_in);
  T* grad_x = g;
  product_nn(gemm, rows, d, f, q, w_in, grad_x);
  for (int64_t r = 0; r < rows; ++r) {
    S* out = destination<S>(a.grad_x, a.extra, slots[r], a.top_k, d);
    for (int64_t j = 0; j < d; ++j) from_scalar(grad_x[r * d + j], &out[j]);
  }
}

template <class Act, class V, class S>
void backward_task(const ExpertsBackward& a, const ExpertTask& task, void* scratch) {
  using T = typename ScalarOf<S>::type;
  const int64_t size = a.hidden * a.ffn, bias_size = a.hidden + a.ffn;
  // Without kIsStored both matrices and their gradients are held in Scalar, before the rows.
  T* room = static_cast<T*>(scratch);
  T* rest = kIsStored<S> ? room : room + 4 * size;
  S* out_w_in = static_cast<S*>(a.grad_w_in) + task.expert * size;
  S* out_w_out = static_cast<S*>(a.grad_w_out) + task.expert * size;
  double* bias_sums = a.bias_sums ? a.bias_sums + task.segment * bias_size : nullptr;
  if (bias_sums) __builtin_memset(bias_sums, 0, bias_size * sizeof(double));
  if (task.rows == 0) {  // an expert without rows, hence of one segment
    __builtin_memset(static_cast<void*>(out_w_in), 0, size * sizeof(S));
    __builtin_memset(static_cast<void*>(out_w_out), 0, size * sizeof(S));
    return;
  }
  T *grad_w_in = room + 2 * size, *grad_w_out = room + 3 * size;
  const int64_t part = a.partial_of[task.segment];
  if (part >= 0) {
    grad_w_in = static_cast<T*>(a.partial) + part * 2 * size;
    grad_w_out = grad_w_in + size;
  } else if constexpr (kIsStored<S>) {
    grad_w_in = out_w_in;
    grad_w_out = out_w_out;
  }
  const T* w_in = matrix<S>(a.w_in, task.expert, size, room);
  const T* w_out = matrix<S>(a.w_out, task.expert, size, room + size);
  const int64_t blocks = (task.rows + a.block / 2) / a.block, parts = blocks < 1 ? 1 : blocks;
  for (int64_t i = 0; i < parts; ++i) {
    const int64_t first = task.rows * i / parts, last = task.rows * (i + 1) / parts;
    backward_block<Act, V, S, T>(a, task.expert, task.begin + first, last - first, w_in, w_out,
                                 i == 0 ? T(0) : T(1), grad_w_in, grad_w_out, bias_sums, rest);
  }
  if constexpr (!kIsStored<S>) {
    if (part >= 0) return;
    for (int64_t i = 0; i < size; ++i) from_scalar(grad_w_in[i], &out_w_in[i]);
    for (int64_t i = 0; i < size; ++i) from_scalar(grad_w_out[i], &out_w_out[i]);
  }
}

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
