import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

from moge_bench import MoELayer


def make(seed=0, **settings):
    torch.manual_seed(seed)
    return MoELayer(8, 12, **{"num_experts": 4, "top_k": 2, "group_size": 2, **settings})


def dense_reference(layer, x):
    """Every expert on every token, then the chosen ones summed: the definition, token by token."""
    routing, e = layer.router(x), layer.experts
    rows = []
    for t, token in enumerate(x):
        row = torch.zeros_like(token)
        for weight, index in zip(routing.weights[t], routing.experts[t], strict=True):
            hidden = F.gelu(e.w_in[index] @ token + e.b_in[index])
            row = row + weight * (e.w_out[index] @ hidden + e.b_out[index])
        rows.append(row)
    return torch.stack(rows)


def test_output_and_gradients_are_the_definition():
    layer, x = make().double(), torch.randn(9, 8, dtype=torch.float64, requires_grad=True)
    y, _ = layer(x)
    expected = dense_reference(layer, x)
    torch.testing.assert_close(y, expected)
    cotangent = torch.randn_like(y)
    got = torch.autograd.grad(y, [x, *layer.parameters()], cotangent)
    wanted = torch.autograd.grad(expected, [x, *layer.parameters()], cotangent)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_shape_and_dtype_of_the_input_are_kept():
    layer = make()
    x = torch.randn(2, 3, 8)
    y, _ = layer(x)
    assert y.shape == x.shape
    torch.testing.assert_close(y, layer(x.reshape(6, 8))[0].reshape(2, 3, 8))


def test_objective_is_the_weighted_sum_of_its_named_terms():
    layer = make(group_weight=0.5, z_loss_weight=0.25, aux_weight=0.01)
    _, aux = layer(torch.randn(16, 8))
    losses = aux.losses
    expected = 0.01 * (losses["balance"] + 0.25 * losses["z"] + 0.5 * losses["group"])
    torch.testing.assert_close(aux.loss, expected)


def gradients(layer, x):
    y, aux = layer(x)
    (y.square().mean() + aux.loss).backward()
    return [y, *(p.grad for p in layer.parameters())]


@pytest.mark.parametrize("plain", [{"group_size": None}, {"group_size": 2, "sigma": 3.0}])
def test_lambda_zero_is_plain_moe_bit_for_bit(plain):
    x = torch.randn(33, 8)
    for a, b in zip(gradients(make(group_weight=0.0), x), gradients(make(**plain), x), strict=True):
        assert torch.equal(a, b)


def test_lambda_changes_the_gates_gradient_and_no_expert():
    x = torch.randn(33, 8)
    weighted, plain = make(group_weight=1.0, aux_weight=1.0), make(group_size=None, aux_weight=1.0)
    gradients(weighted, x)
    gradients(plain, x)
    assert not torch.equal(weighted.router.gate.weight.grad, plain.router.gate.weight.grad)
    assert torch.equal(weighted.experts.w_in.grad, plain.experts.w_in.grad)


def test_nothing_is_dropped_by_default_and_capacity_drops_the_excess():
    x = torch.randn(40, 8)
    x = x[:1].expand(40, 8)  # every token chooses the same two experts
    assert int(make()(x)[1].num_dropped) == 0
    layer = make(capacity_factor=1.0)
    y, aux = layer(x)
    # Capacity is ceil(2 * 40 * 1 / 4) = 20: of 40 choices each, both experts drop 20.
    assert int(aux.num_dropped) == 40
    assert torch.count_nonzero(y.abs().sum(dim=1)) == 20  # the first 20 tokens keep both choices


def test_empty_batch():
    layer = make(group_weight=1.0)
    y, aux = layer(torch.randn(0, 8))
    assert y.shape == (0, 8)
    aux.loss.backward()
    assert float(aux.loss.detach()) == 0.0
    assert torch.equal(layer.router.gate.weight.grad, torch.zeros(4, 8))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"balance": "swich"}, "balance must be one of .*got 'swich'"),
        ({"group_weight": -1.0}, "group_weight must be at least 0, got -1.0"),
        ({"group_weight": float("nan")}, "group_weight must be at least 0, got nan"),
        ({"group_weight": 1.0, "group_size": None}, "group_weight=1.0 needs a group_size"),
        ({"capacity_factor": 0.0}, "capacity_factor must be positive and finite, got 0.0"),
        ({"activation": "tanh"}, "activation must be one of .*got 'tanh'"),
    ],
)
def test_construction_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_wrong_width_names_both():
    with pytest.raises(ValueError, match=r"hidden_size=8.*got \(3, 7\)"):
        make()(torch.randn(3, 7))


def test_groups_of_one_expert_asked_for_as_moge_are_called_plain_moe():
    with pytest.warns(RuntimeWarning, match="group_weight=0.375 with groups of one.*plain MoE"):
        make(group_size=1, group_weight=0.375)  # a weight of its own: each message is said once


def test_copies_compute_the_same():
    layer, x = make(group_weight=1.0, bias_update_rate=0.1), torch.randn(9, 8)
    y, aux = layer(x)
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        z, other = copied(x)
        assert torch.equal(y, z)
        assert torch.equal(aux.loss, other.loss)


def test_aux_can_be_copied_and_pickled():
    with torch.no_grad():
        _, aux = make()(torch.randn(9, 8))
    for copied in (copy.deepcopy(aux), pickle.loads(pickle.dumps(aux))):
        assert torch.equal(copied.loss, aux.loss)
        assert torch.equal(copied.routing.experts, aux.routing.experts)
        assert copied.routing.backend == aux.routing.backend


def test_reset_parameters_makes_a_fresh_layer_of_an_emptied_one():
    """What FSDP does: build on the meta device, allocate, reset."""
    with torch.device("meta"):
        layer = make(bias_update_rate=0.1, sigma=2.0)
    layer.to_empty(device="cpu")
    layer.router.selection_bias.fill_(torch.nan)
    layer.router._load_counts.fill_(77)
    torch.manual_seed(3)
    layer.reset_parameters()
    fresh = make(seed=3, bias_update_rate=0.1, sigma=2.0)
    for (name, a), b in zip(layer.state_dict().items(), fresh.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert torch.equal(layer.router.take_load_counts(), torch.zeros(4, dtype=torch.int64))
    x = torch.randn(9, 8)
    assert torch.equal(layer(x)[1].losses["group"], fresh(x)[1].losses["group"])
