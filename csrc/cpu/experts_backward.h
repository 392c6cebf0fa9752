// A task of the experts' backward pass. Included by experts_kernels.h, whose opening says how.

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
