"""Activation checkpointing: same gradients, every layer collected once, or an error."""

import copy
import pickle

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from moge_bench import MoELayer
from moge_bench.moe.insert import MoEFFN, collect_aux
from moge_bench.moe.residual import AdamResidual, MomentumResidual, Residual

BACKENDS = ["reference", "extension"]


def make(**settings):
    torch.manual_seed(0)
    return MoELayer(8, 12, 4, 2, **{"group_size": 2, "group_weight": 1.0, **settings})


def make_ffns(count=2, residual=None, **settings):
    residual = residual or Residual()
    return torch.nn.ModuleList(
        [MoEFFN(make(**settings), index, residual) for index in range(count)]
    )


def inputs():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(20, 8, generator=generator).requires_grad_()


def gradients(loss, x, module):
    return torch.autograd.grad(loss, [x, *module.parameters()])


@pytest.mark.parametrize("backend", BACKENDS)
def test_non_reentrant_gives_the_same_gradients_aux_included(backend):
    settings = {"noise": True, "balance": "vmoe", "bias_update_rate": 0.1, "capacity_factor": 1.0}
    layer, x = make(backend=backend, **settings), inputs()
    results = []
    for call in (layer, lambda x: checkpoint(layer, x, use_reentrant=False)):
        torch.manual_seed(5)  # the gate noise
        y, aux = call(x)
        results.append(gradients(y.square().sum() + aux.loss, x, layer))
    for plain, recomputed in zip(*results, strict=True):
        assert torch.equal(plain, recomputed)


@pytest.mark.parametrize("backend", BACKENDS)
def test_reentrant_gives_the_same_gradients_of_the_output(backend):
    layer = make(backend=backend)
    results = []
    for call in (layer, lambda x: checkpoint(layer, x, use_reentrant=True)):
        x = inputs()
        y, _ = call(x)
        y.square().sum().backward()
        results.append([x.grad, *(p.grad.clone() for p in layer.parameters())])
        layer.zero_grad()
    for plain, recomputed in zip(*results, strict=True):
        assert torch.equal(plain, recomputed)


@pytest.mark.parametrize("name", ["loss", "losses"])
def test_aux_that_a_reentrant_checkpoint_cuts_off_says_so(name):
    _, aux = checkpoint(make(), inputs(), use_reentrant=True)
    with pytest.raises(RuntimeError, match=f"aux.{name} .* no gradient.*use_reentrant=False"):
        getattr(aux, name)
    assert int(aux.routing.load.sum()) == 20 * 2


def test_aux_without_gradients_on_purpose_can_be_read():
    layer = make()
    with torch.no_grad():
        _, aux = layer(inputs())
    assert torch.isfinite(aux.loss)


@pytest.mark.parametrize("backend", BACKENDS)
def test_collect_aux_collects_a_recomputed_layer_once(backend):
    ffns, x = make_ffns(backend=backend), inputs()
    results = []
    for checkpointed in (False, True):
        with collect_aux(ffns) as auxes:
            y = x
            for ffn in ffns:
                y = y + (checkpoint(ffn, y, use_reentrant=False) if checkpointed else ffn(y))
            loss = y.square().sum() + sum(aux.loss for aux in auxes)
            results.append(gradients(loss, x, ffns))
        assert len(auxes) == 2
    for plain, recomputed in zip(*results, strict=True):
        assert torch.equal(plain, recomputed)


def test_collect_aux_refuses_a_reentrant_checkpoint():
    (ffn,) = make_ffns(1)
    with (
        collect_aux(ffn),
        pytest.raises(RuntimeError, match=r"would have no gradient.*use_reentrant=False"),
    ):
        checkpoint(ffn, inputs(), use_reentrant=True)


def test_collect_aux_without_gradients_on_purpose():
    (ffn,) = make_ffns(1)
    with torch.no_grad(), collect_aux(ffn) as auxes:
        ffn(inputs())
    ffn.eval()
    with collect_aux(ffn) as more, torch.no_grad():
        ffn(inputs())
    assert len(auxes) == len(more) == 1


MOMENTUM = {"mu": 0.7, "gamma1": 1.0, "gamma2": 0.5}
RESIDUALS = [
    MomentumResidual(2, **MOMENTUM),
    AdamResidual(2, **MOMENTUM, beta1=0.9, beta2=0.999),
]


@pytest.mark.parametrize("residual", RESIDUALS)
def test_momentum_across_layers_gives_the_same_gradients(residual):
    ffns, x = make_ffns(residual=residual), inputs()
    results = []
    for checkpointed in (False, True):
        y = x
        for ffn in ffns:
            y = y + (checkpoint(ffn, y, use_reentrant=False) if checkpointed else ffn(y))
        results.append(gradients(y.square().sum(), x, ffns))
    for plain, recomputed in zip(*results, strict=True):
        assert torch.equal(plain, recomputed)


@pytest.mark.parametrize("residual", RESIDUALS)
def test_momentum_across_layers_refuses_a_reentrant_checkpoint(residual):
    y = inputs()
    for ffn in make_ffns(residual=residual):
        y = y + checkpoint(ffn, y, use_reentrant=True)
    with pytest.raises(RuntimeError, match=r"passes its momentum .*use_reentrant=False"):
        y.sum().backward()


def test_a_copy_made_while_aux_is_collected_is_free_of_it():
    (ffn,) = make_ffns(1)
    with collect_aux(ffn) as auxes:
        ffn(inputs())
        for copied in (copy.deepcopy(ffn), pickle.loads(pickle.dumps(ffn))):
            copied(inputs())
    assert len(auxes) == 1
