from dataclasses import FrozenInstanceError, fields

import pytest

from moge_bench import MoELayer, TopographicRouter
from moge_bench.moe.settings import MoESettings
from moge_bench.routing.settings import RouterSettings

# Every setting at a value that is not its default.
OTHERS = {
    "num_experts": 12, "top_k": 3, "group_size": 2, "sigma": 2.5, "map_shape": (2, 6), "stride": 2,
    "border": "torus", "reduction": "official_image", "renormalize": False, "noise": True,
    "bias_update_rate": 0.5, "nonfinite": "propagate", "backend": "reference",
    "group_weight": 0.25, "balance": "vmoe", "z_loss_weight": 0.125, "aux_weight": 0.5,
    "regularizer": "entropy", "regularizer_weight": 0.75, "unit_energy": True, "shuffled": True,
    "score_function": "sigmoid", "num_groups": 4, "top_groups": 3, "scale": 2.0,
    "capacity_factor": 1.5, "batch_priority": True, "activation": "silu", "bias": False,
}  # fmt: skip


def arrived(layer):
    """Return every setting as it stands in the parts of the layer."""
    router, experts = layer.router, layer.experts
    places = [
        vars(router.topography),
        vars(router.choice),
        vars(experts),
        vars(router),
        vars(layer),
    ]
    found = {name: value for place in places for name, value in place.items() if name in OTHERS}
    return found | {
        "capacity_factor": layer.capacity_factor,
        "sigma": router.sigma,
        "shuffled": router.places is not None,
        "bias": experts.b_in is not None,
        "backend": {router.backend, experts.backend},
        "num_experts": {router.num_experts, experts.num_experts},
    }


@pytest.mark.parametrize(
    "make",
    [
        lambda: MoELayer(8, 16, **OTHERS),
        lambda: MoELayer.from_settings(8, 16, MoESettings(**OTHERS)),
    ],
)
def test_every_setting_arrives(make):
    assert {field.name for field in fields(MoESettings)} == OTHERS.keys()
    assert arrived(make()) == OTHERS | {"backend": {"reference"}, "num_experts": {12}}


def test_a_router_takes_its_part_of_a_layers_settings():
    router = TopographicRouter.from_settings(8, MoESettings(**OTHERS))
    elsewhere = {"map_shape", "group_size", "shuffled"}  # shuffled: in places
    names = {field.name for field in fields(RouterSettings)} - elsewhere
    parts = {**vars(router), **vars(router.topography), **vars(router.choice)}
    held = {**parts, "sigma": router.sigma}
    assert {name: held[name] for name in names} == {name: OTHERS[name] for name in names}


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"grup_size": 2},
            TypeError,
            "'grup_size' is not one of the MoESettings; did you mean 'gro",
        ),
        ({"xyz": 2}, TypeError, r"there are \['num_experts', 'top_k', 'group_size'"),
        ({"backend": "cuda"}, ValueError, "backend must be one of .*got 'cuda'"),
        ({"nonfinite": "skip"}, ValueError, "nonfinite must be one of .*got 'skip'"),
        ({"activation": "tanh"}, ValueError, "activation must be one of .*got 'tanh'"),
        ({"aux_weight": float("inf")}, ValueError, "aux_weight must be finite, got inf"),
        ({"group_weight": float("nan")}, ValueError, "group_weight must be at least 0, got nan"),
        ({"group_weight": "4"}, TypeError, "group_weight must be a number, got '4'"),
        ({"aux_weight": None}, TypeError, "aux_weight must be a number, got None"),
        ({"map_shape": 16}, TypeError, r"map_shape must be two ints \(rows, cols\), got 16"),
        ({"bias_update_rate": -1}, ValueError, "bias_update_rate must be at least 0, got -1"),
        ({"capacity_factor": 0}, ValueError, "capacity_factor must be positive and finite, got 0"),
        ({"group_weight": 1.0, "group_size": None}, ValueError, "needs a group_size, got None"),
        ({"group_size": 5}, ValueError, "group_size=5 does not fit the 4x4 map"),
    ],
)
def test_a_wrong_setting_is_refused_by_the_object_and_by_the_layer(settings, error, message):
    with pytest.raises(error, match=message):
        MoELayer(8, 16, 16, 2, **settings)
    if error is ValueError:
        with pytest.raises(error, match=message):
            MoESettings(16, 2, **settings)


def test_settings_are_frozen_and_equal_when_they_mean_the_same():
    settings = MoESettings(16)
    with pytest.raises(FrozenInstanceError):
        settings.top_k = 3
    # 16 experts are laid out 4 x 4 by default.
    assert settings == MoESettings(16, map_shape=(4, 4)) != MoESettings(16, map_shape=(2, 8))
