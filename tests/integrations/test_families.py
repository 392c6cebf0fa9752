"""Every family: the term by hand, a gradient at every gate, and nothing else changed."""

import copy

import pytest
import torch
from integration_samples import FAMILIES, make, make_batch

from moge_bench import group_norm
from moge_bench.integrations.transformers import attach_group_sparsity

TWO_SQUARE = {"group_size": 2, "sigma": 1.0}  # on the map of 8 experts, 2 x 4


def scores(family, logits):
    return logits.sigmoid() if FAMILIES[family][1] == "sigmoid" else logits.softmax(-1)


def record_routers(model, names):
    """Return a list that fills with what each router returns."""
    seen = []
    for name in names:
        model.get_submodule(name).register_forward_hook(lambda _, __, output: seen.append(output))
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_gains_lambda_times_the_group_norm_of_the_scores(family):
    model, batch = make(family), make_batch(padding=(0, 3))
    plain = model(**batch).loss
    handle = attach_group_sparsity(model, group_weight=0.5)
    seen = record_routers(model, handle.routers)
    loss = model(**batch).loss
    index = 2 if family in ("switch", "nllb") else 0
    logits = [output[index].detach().reshape(16, 8) for output in seen]
    counted = batch["attention_mask"].reshape(16) == 1  # 8 + 5 tokens
    by_hand = [group_norm(scores(family, x)[counted], **TWO_SQUARE) for x in logits]
    assert len(handle.losses) == len(by_hand) == 2
    torch.testing.assert_close([*handle.losses.values()], by_hand)
    torch.testing.assert_close(loss, plain + 0.5 * (by_hand[0] + by_hand[1]))


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ("switch", "nllb")])
def test_the_scores_are_those_that_the_router_weighs_with(family):
    """The weights of a token's two experts are to each other as their scores are."""
    model = make(family)
    seen = record_routers(model, attach_group_sparsity(model, group_weight=1.0).routers)
    model(**make_batch())
    for logits, weights, experts in seen:
        chosen = scores(family, logits).gather(1, experts)
        torch.testing.assert_close(weights / weights.sum(1, True), chosen / chosen.sum(1, True))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_term_trains_every_gate(family):
    model, batch = make(family), make_batch()
    handle = attach_group_sparsity(model, group_weight=1.0, add_to_loss=False)
    model(**batch)
    handle.term.backward()
    for name in handle.routers:
        norms = [p.grad.norm() for p in model.get_submodule(name).parameters()]
        assert len(norms) >= 1 and all(norm > 0 for norm in norms), name


@pytest.mark.parametrize("family", FAMILIES)
def test_weight_zero_is_the_model_bit_for_bit(family):
    plain, batch = make(family), make_batch()
    model = copy.deepcopy(plain)
    handle = attach_group_sparsity(model, group_weight=0.0)
    outputs = [plain(**batch), model(**batch)]
    for output in outputs:
        output.loss.backward()
    assert torch.equal(outputs[0].loss, outputs[1].loss)
    for (name, a), b in zip(plain.named_parameters(), model.parameters(), strict=True):
        assert (a.grad is None and b.grad is None) or torch.equal(a.grad, b.grad), name
    assert all(loss > 0 for loss in handle.losses.values())  # measured nevertheless


@pytest.mark.parametrize("family", FAMILIES)
def test_state_dict_and_checkpoints_are_those_of_the_model(family, tmp_path):
    model = make(family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attach_group_sparsity(model, group_weight=1.0)
    after = model.state_dict()
    assert after.keys() == before.keys()
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert all(torch.equal(loaded.state_dict()[name], before[name]) for name in before)


@pytest.mark.parametrize("family", FAMILIES)
def test_removing_leaves_the_model_as_it_was(family):
    model, batch = make(family), make_batch()

    def state():
        return [
            {key: dict(value) for key, value in vars(module).items() if "hook" in key and value}
            for module in model.modules()
        ]

    before, loss = state(), model(**batch).loss
    handle = attach_group_sparsity(model, group_weight=1.0)
    assert state() != before and not torch.equal(model(**batch).loss, loss)
    handle.remove()
    handle.remove()
    assert state() == before and torch.equal(model(**batch).loss, loss)


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_scores_are_made_in_float32(family):
    model, batch = make(family).to(torch.bfloat16), make_batch()
    handle = attach_group_sparsity(model, group_weight=1.0)
    loss = model(**batch).loss
    loss.backward()
    assert all(value.dtype == torch.float32 for value in handle.losses.values())
    for name in handle.routers:
        for parameter in model.get_submodule(name).parameters():
            assert torch.isfinite(parameter.grad).all() and parameter.grad.norm() > 0
