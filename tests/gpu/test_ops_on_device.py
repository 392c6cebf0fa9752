"""The test functions of tests/ops that hold for any device, run on the GPU."""

import importlib.util
from pathlib import Path

TESTS = Path(__file__).parents[1]
REUSED = {
    "ops/test_route.py": (
        "test_every_size_class",
        "test_error_at_most_twice_that_of_pytorch",
        "test_permuting_tokens_permutes_the_routing",
        "test_every_tail_and_many_chunks",
    ),
    "ops/test_contracts.py": (
        "test_nonfinite_input_is_refused_and_named",
        "test_the_same_error_text_from_every_backend",
        "test_propagate",
        "test_ties_go_to_the_lower_index",
        "test_few_distinct_values_sort_stably",
        "test_no_tokens",
        "test_scores_that_underflow",
        "test_large_logits",
        "test_non_contiguous",
        "test_without_groups_there_is_no_loss_and_the_rest_is_the_same",
        "test_a_second_derivative_raises",
    ),
    "ops/test_wider.py": (
        "test_bias_moves_the_selection_alone",
        "test_a_bias_of_minus_infinity_closes_an_expert",
        "test_ties_of_ranges_go_to_the_lower",
        "test_what_is_not_finite_propagates",
        "test_unit_energy_of_scores_of_any_size",
        "test_unit_energy_of_sigmoid_scores_that_underflow",
    ),
    "ops/test_mask.py": (
        "test_padding_in_other_dtypes",
        "test_a_masked_expert_stays_masked_in_padding",
    ),
    "ops/test_group_norm.py": (
        "test_matches_the_reference",
        "test_group_size_one_is_the_mean_score",
        "test_scores_of_zero_have_a_gradient_of_zero",
        "test_empty",
        "test_non_contiguous",
        "test_nonfinite_scores",
    ),
}


def functions_of(path, names):
    """Return the test functions of one file, under names that tell the files apart."""
    spec = importlib.util.spec_from_file_location(f"on_device_{Path(path).stem}", TESTS / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {f"{name}__of_{Path(path).stem}": getattr(module, name) for name in names}


for _path, _names in REUSED.items():
    globals().update(functions_of(_path, _names))
