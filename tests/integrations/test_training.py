"""The term under checkpointing, accumulation, autocast, torch.compile, several processes."""

import copy
import math
import warnings

import pytest
import torch
import torch.distributed as dist
from integration_samples import make, make_batch
from rank_samples import run_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from moge_bench.integrations import dose as dosing
from moge_bench.integrations.router_forms import RouterForm
from moge_bench.integrations.transformers import attach_group_sparsity, measure_dose


def attach(model, **settings):
    return attach_group_sparsity(model, **{"group_weight": 5.0, **settings})


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def loss_and_gradients(model, run=None, **batch):
    model.zero_grad()
    loss = (model if run is None else run)(**batch).loss
    loss.backward()
    return loss.detach(), gradients(model)


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "switch"])
def test_checkpointing_counts_a_router_once(family):
    model, batch = make(family), make_batch()
    handle = attach(model)
    plain = loss_and_gradients(model, **batch)
    losses = handle.losses
    model.gradient_checkpointing_enable({"use_reentrant": False})
    torch.testing.assert_close(loss_and_gradients(model, **batch), plain)
    torch.testing.assert_close(handle.losses, losses)
    assert len(losses) == 2


def test_reentrant_checkpointing_is_refused():
    model, batch = make("mixtral"), make_batch()
    attach(model)
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    with pytest.raises(RuntimeError, match=r"no gradient.*use_reentrant': False"):
        model(**batch)


def test_a_plain_loop_divides_the_term_with_the_loss():
    """Two equal halves, each by 2: the whole batch, for L_group is a mean over tokens."""
    model, batch = make("mixtral"), make_batch(padding=(2, 2))
    attach(model)
    _, whole = loss_and_gradients(model, **batch)
    model.zero_grad()
    for row in range(2):
        (model(**{key: value[row : row + 1] for key, value in batch.items()}).loss / 2).backward()
    torch.testing.assert_close(gradients(model), whole)


def test_num_items_in_batch_weighs_a_micro_batch_by_its_targets():
    """7 targets and 4: the terms weigh 7/11 and 4/11, as the task losses do."""
    model, batch = make("mixtral"), make_batch(padding=(0, 3))
    handle = attach(model)
    rows = [{key: value[row : row + 1] for key, value in batch.items()} for row in range(2)]
    handle.set_group_weight(0.0)
    task = [model(**row, num_items_in_batch=11).loss for row in rows]
    handle.set_group_weight(5.0)
    for row, plain, targets in zip(rows, task, (7, 4), strict=True):
        loss = model(**row, num_items_in_batch=11).loss
        torch.testing.assert_close(loss, plain + 5 * handle.group_loss * targets / 11)
        # Collators that pack give the targets themselves.
        shifted = torch.nn.functional.pad(row["labels"], (0, 1), value=-100)[:, 1:]
        again = model(**row, shift_labels=shifted, num_items_in_batch=torch.tensor(11)).loss
        torch.testing.assert_close(again, loss)


def test_a_label_of_an_encoder_decoder_is_its_own_target():
    model, batch = make("switch"), make_batch(padding=(0, 3))
    handle = attach(model, group_weight=0.0)
    plain = model(**batch, num_items_in_batch=26).loss
    handle.set_group_weight(1.0)
    loss = model(**batch, num_items_in_batch=26).loss
    torch.testing.assert_close(loss, plain + handle.group_loss * 13 / 26)


def test_under_autocast_the_scores_are_float32():
    model, batch = make("mixtral"), make_batch()
    handle = attach(model)
    plain = loss_and_gradients(model, **batch)[0]
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**batch).loss
    loss.backward()
    assert all(value.dtype == torch.float32 for value in handle.losses.values())
    torch.testing.assert_close(loss, plain, rtol=0.05, atol=0.0)  # 8 bits of mantissa


@pytest.mark.slow
def test_compiled_code_gives_the_same_and_follows_sigma():
    torch._dynamo.reset()
    model, batch = make("mixtral", layers=1, experts="batched_mm"), make_batch()
    plain = copy.deepcopy(model)
    handle, expected = attach(model), attach(plain)
    run = torch.compile(model, backend="aot_eager", fullgraph=True)
    for sigma in (1.0, 0.5, None):
        handle.set_sigma(sigma)
        expected.set_sigma(sigma)
        compiled = loss_and_gradients(model, run, **batch)
        torch.testing.assert_close(compiled, loss_and_gradients(plain, **batch))
        torch.testing.assert_close(handle.losses, expected.losses)


class Gate(nn.Linear):
    """A router of one's own."""


class Block(nn.Module):
    """A layer that breaks the graph behind its router, as Mixtral's plain experts do."""

    def __init__(self):
        super().__init__()
        self.gate, self.expert = Gate(6, 4), nn.Linear(6, 6)

    def forward(self, x):
        score = self.gate(x).softmax(-1).amax(-1, keepdim=True)
        torch._dynamo.graph_break()
        return x + score * self.expert(x)


class Stack(nn.Module):
    def __init__(self, layers):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block() for _ in range(layers))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x.square().mean()


def test_compiled_code_with_graph_breaks_gives_the_same_and_follows_sigma():
    torch._dynamo.reset()
    model, plain, x = Stack(2), Stack(2), torch.randn(5, 6)
    handles = [attach(each, forms={"Gate": RouterForm("softmax")}) for each in (model, plain)]
    run = torch.compile(model, backend="aot_eager")
    for sigma in (1.0, 0.5, None):
        for each in (model, plain):
            each.zero_grad()
        for handle in handles:
            handle.set_sigma(sigma)
        losses = run(x), plain(x)
        for loss in losses:
            loss.backward()
        torch.testing.assert_close(*losses)
        torch.testing.assert_close(gradients(model), gradients(plain))
        torch.testing.assert_close(handles[0].losses, handles[1].losses)


def test_compiled_layers_share_their_code():
    """The hooks add no graph break, and what they add to compile does not grow with the layers."""
    frames = {}
    for attached in (False, True):
        for layers in (2, 4):
            torch._dynamo.reset()
            torch._dynamo.utils.counters.clear()
            model = Stack(layers)
            if attached:
                attach(model, forms={"Gate": RouterForm("softmax")})
            torch.compile(model, backend="eager")(torch.randn(5, 6))
            counters = torch._dynamo.utils.counters
            breaks = sum(counters["graph_break"].values())
            frames[attached, layers] = breaks, counters["frames"]["total"]
    for layers in (2, 4):
        (breaks, plain), (with_hooks, attached) = frames[False, layers], frames[True, layers]
        assert breaks == with_hooks > 0
        assert attached - plain == frames[True, 2][1] - frames[False, 2][1]


def step_of_rank():
    rank = dist.get_rank()
    model, batch = make("mixtral"), make_batch(padding=(2, 2))
    attach(model)
    mine = {key: value[rank : rank + 1] for key, value in batch.items()}
    parallel = DistributedDataParallel(model, find_unused_parameters=True)
    parallel(**mine).loss.backward()
    return gradients(model)


def test_two_processes_average_the_term():
    averaged, _ = run_ranks(2, step_of_rank)
    model, batch = make("mixtral"), make_batch(padding=(2, 2))
    attach(model)
    _, whole = loss_and_gradients(model, **batch)
    torch.testing.assert_close(averaged, whole)


def test_the_dose_by_hand():
    model, batch = make("mixtral"), make_batch()
    handle = attach(model, group_weight=0.0)
    _, task = loss_and_gradients(model, **batch)
    handle.set_group_weight(1.0)
    _, both = loss_and_gradients(model, **batch)
    gates = [f"{name}.weight" for name in handle.routers]
    handle.set_group_weight(0.5)
    dose = measure_dose(model, **batch)
    torch.testing.assert_close(gradients(model), both)  # untouched
    for name, gate in zip(handle.routers, gates, strict=True):
        assert dose.task[name] == pytest.approx(float(task[gate].norm()), rel=1e-4)
        assert dose.group[name] == pytest.approx(float((both[gate] - task[gate]).norm()), rel=1e-3)
        assert dose.ratios[name] == pytest.approx(0.5 * dose.group[name] / dose.task[name])
    norms = [math.hypot(*values.values()) for values in (dose.group, dose.task)]
    assert dose.ratio == pytest.approx(0.5 * norms[0] / norms[1])
    handle.set_group_weight(dose.weight_for(0.1))
    assert measure_dose(model, **batch).ratio == pytest.approx(0.1)


def test_measuring_the_dose_leaves_the_training_as_it_was():
    model, batch = make("mixtral"), make_batch()
    handle = attach(model, group_weight=0.0)
    model(**batch)
    state, losses = torch.get_rng_state(), handle.losses
    assert measure_dose(model, **batch).per_unit > 0
    assert torch.equal(torch.get_rng_state(), state) and handle.losses is losses
    assert handle.parts is None
    compiled = torch.compile(model, backend="eager")
    assert measure_dose(compiled, **batch).task == measure_dose(model, **batch).task


def test_a_dose_that_cannot_be_measured_says_why():
    model, batch = make("mixtral"), make_batch()
    with pytest.raises(ValueError, match="must have the group loss attached"):
        measure_dose(model, **batch)
    attach(model, add_to_loss=False)
    with pytest.raises(ValueError, match="give the batch its labels"):
        measure_dose(model, batch["input_ids"])
    for layer in model.model.layers:
        layer.mlp.gate.requires_grad_(False)
    with pytest.raises(ValueError, match="a router with a parameter that requires a gradient"):
        measure_dose(model, **batch)
    single = make("mixtral")
    attach(single, group_size=1)
    dose = measure_dose(single, **batch)
    assert dose.per_unit < 1e-4  # h = 1: constant up to eps (docs/method.md "Controls")


def test_a_loss_that_does_not_depend_on_the_gates_has_no_dose(monkeypatch):
    """As where FSDP calls the model with other tensors than its parameters."""
    model, batch = make("mixtral"), make_batch()
    attach(model)
    monkeypatch.setattr(dosing, "_gates", lambda model: [("gate", nn.Parameter(torch.ones(1)))])
    with pytest.raises(ValueError, match="Sharded ones"):
        measure_dose(model, **batch)


@pytest.mark.parametrize(("dose", "ratio", "message"), [
    (dosing.Dose(1.0, {"a": 0.0}, {"a": 1.0}), 0.1, "the task loss has no gradient at the gates"),
    (dosing.Dose(1.0, {"a": math.inf}, {"a": 1.0}), 0.1, "a gradient at the gates is not finite"),
    (dosing.Dose(1.0, {"a": 1.0}, {"a": 0.0}), 0.1, "the group loss has no gradient at the gates"),
    (dosing.Dose(1.0, {"a": 1.0}, {"a": 1.0}), -1.0, "ratio must be a finite number >= 0, got -1"),
])  # fmt: skip
def test_no_lambda_gives_such_a_ratio(dose, ratio, message):
    with pytest.raises(ValueError, match=message):
        dose.weight_for(ratio)


def test_a_dose_without_gradients_is_none():
    dose = dosing.Dose(0.0, {"a": 0.0, "b": 2.0}, {"a": 1.0, "b": 1.0})
    assert dose.ratio == 0 and dose.ratios == {"a": 0.0, "b": 0.0}


@pytest.mark.parametrize("call", [
    lambda model, batch: model.forward(**batch),
    lambda model, batch: model.model(batch["input_ids"]),
])  # fmt: skip
def test_a_call_around_the_attached_model_is_told(call):
    model, batch = make("mixtral"), make_batch()
    handle = attach(model)
    message = "outside a call of the model that the group loss"
    with pytest.warns(RuntimeWarning, match=message) as told:
        call(model, batch)
    assert len([one for one in told if message in str(one.message)]) == 1  # not for each router
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        call(model, batch)  # once for an attachment
        handle.told_of_lost_term = False
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model(**batch).loss.backward()  # runs the routers again
        with torch.no_grad():
            call(model, batch)
        call(model.eval(), batch)
