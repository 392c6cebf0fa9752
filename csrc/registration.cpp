// Schemas of every op, and the pybind11 module: facts of the build, and the router's ops as plain
// functions. No kernel, no binding.

#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>
#include <torch/version.h>

#include "kernels.h"
#include "signatures.h"
#include "source_hash.h"

TORCH_LIBRARY(moge, library) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  // groups, choice: plan.h.
  library.def(
      "route(Tensor logits, Tensor? noise, Tensor? taps, int[] groups, int[] choice, bool strict, "
      "*, Tensor? bias=None, Tensor? mask=None, float scale=1.0) -> (Tensor weights, Tensor "
      "experts, Tensor importance, Tensor group_loss, Tensor load, "
      "Tensor first_load, Tensor row_stats)",
      tags);
  library.def(
      "route_backward(Tensor? grad_weights, Tensor? grad_importance, Tensor? grad_loss, "
      "Tensor logits, Tensor? taps, Tensor experts, Tensor weights, Tensor row_stats, "
      "int[] groups, int[] choice, *, Tensor? mask=None, float scale=1.0) -> Tensor",
      tags);
  library.def(
      "group_norm(Tensor scores, Tensor taps, int[] groups, bool strict, *, Tensor? mask=None) "
      "-> Tensor",
      tags);
  library.def(
      "group_norm_backward(Tensor grad_loss, Tensor scores, Tensor taps, int[] groups, *, "
      "Tensor? mask=None) -> Tensor",
      tags);
  // The experts of a GPU, around torch's matrix products (moge_bench/ops/grouped_ffn.py).
  library.def(
      "dispatch(Tensor x, Tensor experts, int num_experts) -> "
      "(Tensor rows, Tensor offsets, Tensor slots, Tensor positions, Tensor bad_row)",
      tags);
  library.def("bias_activation(Tensor rows, Tensor bias, Tensor offsets, int activation) -> Tensor",
              tags);
  library.def(
      "bias_activation_backward(Tensor grad_output, Tensor? rows, Tensor? bias, Tensor offsets, "
      "int activation) -> (Tensor grad_rows, Tensor grad_bias)",
      tags);
  library.def("combine(Tensor rows, Tensor? weights, Tensor slots, Tensor positions) -> Tensor",
              tags);
  library.def(
      "combine_backward(Tensor grad_y, Tensor rows, Tensor weights, Tensor slots, "
      "Tensor positions) -> (Tensor grad_rows, Tensor grad_weights)",
      tags);
}

namespace {

// moge_bench.ops.loading looks for it in the file, before another torch loads that.
[[gnu::used]] const char built_for[] = "moge_bench._C is built for torch " TORCH_VERSION;

pybind11::dict build_info() {
  pybind11::dict info;
  info["version"] = MOGE_VERSION;
  info["source_hash"] = moge::source_hash();
  info["compiler"] = __VERSION__;
  info["torch"] = TORCH_VERSION;
  info["instruction_sets"] = moge::compiled_instruction_sets();
  return info;
}

// torch.ops matches every argument to the schema and puts it in a box, a good part of a call on few
// tokens. These go to the dispatcher with their arguments as they are.
moge::RouteOutputs route(const at::Tensor& logits, const moge::OptionalTensor& noise,
                         const moge::OptionalTensor& taps, const std::vector<int64_t>& groups,
                         const std::vector<int64_t>& choice, bool strict,
                         const moge::OptionalTensor& bias, const moge::OptionalTensor& mask,
                         double scale) {
  return moge::route_op().call(logits, noise, taps, groups, choice, strict, bias, mask, scale);
}

at::Tensor group_norm(const at::Tensor& scores, const at::Tensor& taps,
                      const std::vector<int64_t>& groups, bool strict,
                      const moge::OptionalTensor& mask) {
  return moge::group_norm_op().call(scores, taps, groups, strict, mask);
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.doc() = "The moge operators, which importing this registers, and facts of their build.";
  module.def("build_info", &build_info, "What was built, from what, with what.");
  module.def(
      "instruction_set", [] { return moge::kernels().name; },
      "The instruction set that runs: the processor's best, or the one MOGE_CPU_ISA names.");
  using unlocked = pybind11::call_guard<pybind11::gil_scoped_release>;
  pybind11::module_ ops = module.def_submodule("ops", "Ops of torch.ops.moge, called directly.");
  using namespace pybind11::literals;
  const pybind11::none none;
  ops.def("route", &route, unlocked(), "torch.ops.moge.route, the tensors by position.", "logits"_a,
          "noise"_a, "taps"_a, "groups"_a, "choice"_a, "strict"_a, "bias"_a = none, "mask"_a = none,
          "scale"_a = 1.0);
  ops.def("group_norm", &group_norm, unlocked(), "torch.ops.moge.group_norm.", "scores"_a, "taps"_a,
          "groups"_a, "strict"_a, "mask"_a = none);
}
