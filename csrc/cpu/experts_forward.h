// A task of the experts' forward pass. Included by experts_kernels.h, whose opening says how.

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
