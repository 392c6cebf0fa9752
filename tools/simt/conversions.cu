// The conversions of portable.cuh, for the tests that compare them with torch's.
#include "cuda/portable.cuh"

using namespace moge::cuda;

extern "C" {
void test_half_to_float(const uint16_t* bits, float* values, int count) {
  for (int i = 0; i < count; ++i) values[i] = to_float(Half{bits[i]});
}
void test_bfloat16_to_float(const uint16_t* bits, float* values, int count) {
  for (int i = 0; i < count; ++i) values[i] = to_float(BFloat16{bits[i]});
}
void test_float_to_half(const float* values, uint16_t* bits, int count) {
  for (int i = 0; i < count; ++i) bits[i] = from_float<Half>(values[i]).bits;
}
void test_float_to_bfloat16(const float* values, uint16_t* bits, int count) {
  for (int i = 0; i < count; ++i) bits[i] = from_float<BFloat16>(values[i]).bits;
}
}
