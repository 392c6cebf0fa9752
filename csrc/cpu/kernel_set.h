// Builds a KernelSet of the vector types Float and Double. Included inside an anonymous namespace.

template <class Float, class Double>
struct Kernels {
  static void route_forward(const RouteForward& a, int64_t begin, int64_t end) {
    switch (a.dtype) {
      case Dtype::kFloat32:
        return route_forward_chunks<Float, float>(a, begin, end);
      case Dtype::kFloat64:
        return route_forward_chunks<Double, double>(a, begin, end);
      case Dtype::kBFloat16:
        return route_forward_chunks<Float, BFloat16>(a, begin, end);
      case Dtype::kFloat16:
        return route_forward_chunks<Float, Float16>(a, begin, end);
    }
  }
  static void route_backward(const RouteBackward& a, int64_t begin, int64_t end) {
    switch (a.dtype) {
      case Dtype::kFloat32:
        return route_backward_chunks<Float, float>(a, begin, end);
      case Dtype::kFloat64:
        return route_backward_chunks<Double, double>(a, begin, end);
      case Dtype::kBFloat16:
        return route_backward_chunks<Float, BFloat16>(a, begin, end);
      case Dtype::kFloat16:
        return route_backward_chunks<Float, Float16>(a, begin, end);
    }
  }
  static void group_norm_forward(const GroupNorm& a, int64_t begin, int64_t end) {
    switch (a.dtype) {
      case Dtype::kFloat32:
        return group_norm_forward_chunks<Float, float>(a, begin, end);
      case Dtype::kFloat64:
        return group_norm_forward_chunks<Double, double>(a, begin, end);
      case Dtype::kBFloat16:
        return group_norm_forward_chunks<Float, BFloat16>(a, begin, end);
      case Dtype::kFloat16:
        return group_norm_forward_chunks<Float, Float16>(a, begin, end);
    }
  }
  static void group_norm_backward(const GroupNorm& a, int64_t begin, int64_t end) {
    switch (a.dtype) {
      case Dtype::kFloat32:
        return group_norm_backward_chunks<Float, float>(a, begin, end);
      case Dtype::kFloat64:
        return group_norm_backward_chunks<Double, double>(a, begin, end);
      case Dtype::kBFloat16:
        return group_norm_backward_chunks<Float, BFloat16>(a, begin, end);
      case Dtype::kFloat16:
        return group_norm_backward_chunks<Float, Float16>(a, begin, end);
    }
  }
};
