"""What each method changes, and that it changes nothing else."""

import pytest

from moge_bench.methods import METHODS
from moge_bench.models.cost import cost_of
from moge_bench.presets import find_preset, resolve

FLAGS = {
    "moge": (False, False),
    "moge-shuffled": (True, False),
    "moge-unit": (False, True),
    "moge-unit-shuffled": (True, True),
}
REGULARIZED = {"moe-entropy": "entropy", "simbal": "simbal", "orthogonality": "orthogonality"}
GROUPED = [method.name for method in METHODS.values() if method.has("moe.group")]
# As many experts as the MoE, trained by something else.
OF_MOE = [name for name in METHODS if name not in ("dense", "dense-wide", "moe")]
OF_ITS_METHOD = ("group", "regularizer", "regularizer_weight")


def settings(preset, method, **overrides):
    # A weight for those that have a regularizer; the others do not take it.
    return resolve(preset, method, {"moe.regularizer_weight": 1.0, **overrides}).model_dump()


@pytest.mark.parametrize("preset", ["tiny-vit", "tiny-lm", "smoge-s"])
@pytest.mark.parametrize("method", OF_MOE)
def test_a_method_differs_from_moe_in_its_loss_alone(preset, method):
    found, moe = settings(preset, method), settings(preset, "moe")
    for values in (found, moe):
        del values["method"], values["preset"]
        for name in OF_ITS_METHOD:
            del values["moe"][name]
    assert found == moe


@pytest.mark.parametrize(("method", "flags"), FLAGS.items())
def test_the_controls_of_moge_differ_in_what_their_names_say(method, flags):
    group = settings("tiny-vit", method, **{"moe.group.weight": 7.0})["moe"]["group"]
    assert (group.pop("shuffled"), group.pop("unit_energy")) == flags
    moge = settings("tiny-vit", "moge", **{"moe.group.weight": 7.0})["moe"]["group"]
    assert group.items() <= moge.items()


@pytest.mark.parametrize("preset", ["tiny-vit", "tiny-lm"])
@pytest.mark.parametrize("method", ["moge", "moge-unit"])
def test_a_shuffled_control_keeps_the_tuned_weight_of_what_it_controls(preset, method):
    weights = [
        settings(preset, name)["moe"]["group"]["weight"] for name in (method, f"{method}-shuffled")
    ]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("preset", ["tiny-vit", "tiny-lm"])
def test_what_is_tuned_by_itself_does_not_follow_the_lambda_of_moge(preset):
    """Unit energy and the entropy have weights of their own: else a new lambda would move them."""
    tuned = find_preset(preset).tuned
    for method in ("moge-unit", "moge-unit-shuffled"):
        assert "moe.group.weight" in tuned[method]
    assert "moe.regularizer_weight" in tuned["moe-entropy"]


@pytest.mark.parametrize(("method", "regularizer"), REGULARIZED.items())
def test_a_regularizer_has_its_weight_and_no_group(method, regularizer):
    moe = settings("tiny-vit", method, **{"moe.regularizer_weight": 0.5})["moe"]
    assert (moe["regularizer"], moe["regularizer_weight"]) == (regularizer, 0.5)
    assert moe["group"] is None


@pytest.mark.parametrize("method", REGULARIZED)
def test_a_regularizer_without_a_weight_is_refused(method):
    """It would be plain MoE under another name."""
    with pytest.raises(ValueError, match=f"{method!r} needs moe.regularizer_weight above 0, got 0"):
        resolve("tiny-vit", method, {"moe.regularizer_weight": 0.0})
    with pytest.raises(ValueError, match="it would be plain MoE"):
        resolve("smoe-s", method)  # which has none tuned


@pytest.mark.parametrize("method", ["moe", *GROUPED])
def test_a_weight_that_is_not_the_methods_does_not_reach_it(method):
    assert resolve("tiny-vit", method, {"moe.regularizer_weight": 3.0}) == resolve(
        "tiny-vit", method
    )


@pytest.mark.parametrize(("preset", "top_k"), [("tiny-vit", 2), ("tiny-lm", 2), ("tiny-lm", 4)])
def test_dense_wide_has_the_active_flops_of_the_moe(preset, top_k):
    wide, moe = (resolve(preset, m, {"moe.top_k": top_k}) for m in ("dense-wide", "moe"))
    assert wide.moe.expert_size == top_k * moe.model.ffn_size
    assert (wide.moe.num_experts, wide.moe.balance, wide.moe.noise) == (1, "none", False)
    # They differ in the gate: 2 * hidden_size * (N - 1) FLOPs a token in each MoE layer.
    gates = 2 * moe.model.hidden_size * (moe.moe.num_experts - 1) * len(moe.moe.blocks)
    assert cost_of(moe).flops_per_token - cost_of(wide).flops_per_token == gates


@pytest.mark.parametrize("method", GROUPED)
def test_what_tells_methods_apart_is_fixed_by_each_that_has_a_group(method):
    """Else what a study sets for another, a regularizer or its flags, would reach it too."""
    assert METHODS["moge"].sets.keys() <= METHODS[method].sets.keys()


def test_every_method_is_something_of_its_own():
    """Somewhere: on a preset that has what a method sets already it is another name for that."""
    runs = {}
    for preset in ("tiny-vit", "smoge-s"):
        for name in METHODS:
            values = settings(preset, name)
            del values["method"]
            runs.setdefault(name, []).append(repr(values))
    same = [(a, b) for a in METHODS for b in METHODS if a < b and runs[a] == runs[b]]
    assert same == []


def test_every_method_has_its_own_colour():
    named: dict[str, list[str]] = {}
    for method in METHODS.values():
        named.setdefault(method.colour, []).append(method.name)
    assert [names for names in named.values() if len(names) > 1] == []
