import torch

from moge_bench.models.build import build_model, count_parameters
from moge_bench.moe.insert import collect_aux
from moge_bench.presets import resolve


def build(method, seed=0, **overrides):
    return build_model(resolve("tiny-vit", method, overrides, seed))


def test_methods_share_every_weight_they_have_in_common():
    dense, moe, moge = (build(m).state_dict() for m in ("dense", "moe", "moge"))
    assert moe.keys() == moge.keys()
    assert all(torch.equal(moe[name], moge[name]) for name in moe)
    shared = dense.keys() & moe.keys()
    assert all(torch.equal(dense[name], moe[name]) for name in shared)
    assert all("mlp" in name for name in dense.keys() - shared)


def test_seeds_differ_and_the_global_generator_is_left_alone():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first, second = build("moe", 0), build("moe", 1)
    assert torch.equal(torch.rand(1), expected)
    name = "vit.layers.2.mlp.layer.router.gate.weight"
    assert not torch.equal(first.state_dict()[name], second.state_dict()[name])


def test_layers_of_one_model_start_from_different_weights():
    state = build("moe").state_dict()
    gates = [state[f"vit.layers.{block}.mlp.layer.router.gate.weight"] for block in (2, 3)]
    assert not torch.equal(*gates)


def test_group_settings_reach_the_router():
    model = build("moge", **{"moe.group.size": 2, "moe.group.border": "torus"})
    topography = model.vit.layers[2].mlp.layer.router.topography
    assert (topography.group_size, topography.border) == (2, "torus")
    assert build("moe").vit.layers[2].mlp.layer.router.topography is None


def test_active_parameters_leave_out_the_experts_not_chosen():
    counts = count_parameters(build("moe", **{"moe.num_experts": 16, "moe.top_k": 2}))
    # One expert: 64*128 + 128 + 128*64 + 64 = 16,576. Idle: 14 experts in each of 2 layers.
    assert counts["total"] - counts["active"] == 2 * 14 * 16_576
    dense = count_parameters(build("dense"))
    assert dense["total"] == dense["active"]


def test_forward_gives_class_logits_and_one_aux_per_layer():
    model = build("moge")
    with collect_aux(model) as auxes:
        logits = model(torch.randn(3, 1, 28, 28)).logits
    assert logits.shape == (3, 10)
    # 28 / 7 = 4, 4 * 4 patches and the class token: 17 tokens an image.
    assert [tuple(aux.routing.experts.shape) for aux in auxes] == [(51, 1)] * 2
