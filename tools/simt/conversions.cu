// What the tests ask of the interface itself: the size of every struct of launch.h, whose twins
// simt_kernels.py declares, and the conversions of portable.cuh.
#include "cuda/launch.h"
#include "cuda/portable.cuh"

using namespace moge::cuda;

extern "C" {
int test_struct_bytes(int index) {
  const size_t bytes[] = {
      sizeof(moge::Groups),     sizeof(RouteForward),      sizeof(RouteBackward),
      sizeof(GroupNormForward), sizeof(GroupNormBackward), sizeof(SortChoices),
      sizeof(GatherRows),       sizeof(CombineRows),       sizeof(CombineWeightGrad)};
  return int(bytes[index]);
}
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
