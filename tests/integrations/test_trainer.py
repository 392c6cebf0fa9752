"""The transformers Trainer: the term whatever the accumulation, and the callback."""

import pytest
import torch
from integration_samples import make, make_batch
from transformers import Trainer, TrainingArguments

from moge_bench import SigmaSchedule
from moge_bench.integrations.transformers import (
    GroupSparsityCallback,
    attach_group_sparsity,
    measure_dose,
)


def rows(count, padding=(0, 3)):
    """Return ``count`` examples; every second has three tokens of padding."""
    batches = [make_batch(seed, padding) for seed in range(count // 2)]
    return [{key: value[row] for key, value in batch.items()} for batch in batches
            for row in range(2)]  # fmt: skip


def train(model, folder, examples, callbacks=(), **settings):
    arguments = {"max_steps": 1, "optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0,
                 "lr_scheduler_type": "constant", "report_to": "none", "save_strategy": "no",
                 "logging_steps": 1, "disable_tqdm": True, "use_cpu": True, "seed": 0,
                 "remove_unused_columns": False,
                 "per_device_train_batch_size": 2, **settings}  # fmt: skip
    trainer = Trainer(
        model, TrainingArguments(output_dir=folder, **arguments), train_dataset=examples,
        callbacks=[*callbacks],
    )  # fmt: skip
    trainer.train()
    return trainer


def moved(model):
    """Return how far one step of the Trainer, with learning rate 1, moved the gates."""
    start = make("mixtral").state_dict()
    return {name: start[name] - value.detach() for name, value in model.state_dict().items()
            if "mlp.gate" in name}  # fmt: skip


@pytest.mark.parametrize("settings", [{}, {"bf16": True}, {"gradient_checkpointing": True}])
def test_the_scale_does_not_depend_on_the_number_of_micro_batches(tmp_path, settings):
    """Four examples of equal length, in one batch, in two micro-batches and in four."""
    steps = {}
    for count in (1, 2, 4):
        model = make("mixtral")
        attach_group_sparsity(model, group_weight=5.0)
        train(model, tmp_path, rows(4, padding=(2, 2)), per_device_train_batch_size=4 // count,
              gradient_accumulation_steps=count, **settings)  # fmt: skip
        steps[count] = moved(model)
    close = {"rtol": 0.1, "atol": 0.01} if "bf16" in settings else {}
    torch.testing.assert_close(steps[2], steps[1], **close)
    torch.testing.assert_close(steps[4], steps[1], **close)


def test_the_term_is_in_the_step_of_the_trainer(tmp_path):
    """Trainer's step less the one without a term is the gradient of lambda times L_group."""
    steps = []
    for weight in (0.0, 5.0):
        model = make("mixtral")
        attach_group_sparsity(model, group_weight=weight)
        train(model, tmp_path, rows(2))
        steps.append(moved(model))
    model = make("mixtral")
    handle = attach_group_sparsity(model, group_weight=5.0, add_to_loss=False)
    model(**make_batch(0))
    handle.term.backward()
    for name in steps[0]:
        by_hand = model.get_parameter(name).grad
        torch.testing.assert_close(steps[1][name] - steps[0][name], by_hand, rtol=1e-3, atol=1e-5)


def test_the_callback_anneals_sigma_and_logs_the_loss_and_the_dose(tmp_path):
    model, seen = make("mixtral"), []
    schedule = SigmaSchedule(10.0, 1.0, 0.2, total_steps=4)
    handle = attach_group_sparsity(model, group_weight=5.0, sigma=schedule)
    model.register_forward_pre_hook(lambda *_: seen.append(handle.sigma))
    trainer = train(model, tmp_path, rows(4), [GroupSparsityCallback(log_dose=False)],
                    max_steps=3, gradient_accumulation_steps=2)  # fmt: skip
    assert seen == [schedule.sigma(step) for step in (0, 0, 1, 1, 2, 2)]
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["group_sigma"] for entry in logs] == [schedule.sigma(s) for s in range(3)]
    assert all("group_dose" not in entry and entry["group_loss"] > 0 for entry in logs)


def test_the_logged_figures_by_hand(tmp_path):
    model, batch = make("mixtral"), make_batch(0)
    handle = attach_group_sparsity(model, group_weight=5.0)
    model(**batch)
    loss = float(handle.group_loss)
    trainer = train(model, tmp_path, rows(2), [GroupSparsityCallback()], data_seed=0)
    entry = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert entry["group_loss"] == pytest.approx(loss, rel=1e-4)
    assert entry["group_dose"] == pytest.approx(measure_dose(model, **batch).ratio, rel=1e-4)
    assert entry["group_sigma"] == 1.0
    assert handle.inputs is None and not handle.keeps_inputs


def test_a_dose_that_cannot_be_measured_is_told_once_and_not_logged(tmp_path):
    model = make("mixtral")
    handle = attach_group_sparsity(model, group_weight=5.0)
    for name in handle.routers:
        model.get_submodule(name).requires_grad_(False)
    with pytest.warns(
        RuntimeWarning, match="not logged any more: model must have a router"
    ) as told:
        trainer = train(model, tmp_path, rows(4), [GroupSparsityCallback()], max_steps=3)
    assert len([one for one in told if "not logged" in str(one.message)]) == 1
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 3 and all("group_dose" not in e and e["group_loss"] > 0 for e in logs)
    assert handle.inputs is None and not handle.keeps_inputs


def test_measuring_the_dose_does_not_change_the_training(tmp_path):
    models = []
    for callbacks in ([], [GroupSparsityCallback()]):
        model = make("mixtral")
        attach_group_sparsity(model, group_weight=5.0)
        train(model, tmp_path, rows(4), callbacks, max_steps=3)
        models.append(model.state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_a_loss_of_ones_own_adds_the_term(tmp_path):
    def compute_loss(outputs, labels, num_items_in_batch=None):
        logits, targets = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        task = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
        return task / num_items_in_batch + handle.term_for(labels, num_items_in_batch)

    steps = []
    for own in (False, True):
        model = make("mixtral")
        handle = attach_group_sparsity(model, group_weight=5.0, add_to_loss=not own)
        arguments = TrainingArguments(
            output_dir=tmp_path, max_steps=1, optim="sgd", learning_rate=1.0, max_grad_norm=0.0,
            lr_scheduler_type="constant", report_to="none", save_strategy="no", use_cpu=True,
            disable_tqdm=True, per_device_train_batch_size=1, gradient_accumulation_steps=2,
        )  # fmt: skip
        loss = {"compute_loss_func": compute_loss} if own else {}
        Trainer(model, arguments, train_dataset=rows(2), **loss).train()
        steps.append(moved(model))
    torch.testing.assert_close(steps[1], steps[0])


class Around(torch.nn.Module):
    """Calls the forward of the model inside, past its hooks, as PEFT does."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, **batch):
        return self.model.forward(**batch)


def test_a_model_that_the_trainer_does_not_call_is_found_out(tmp_path):
    around = Around(make("mixtral"))
    handle = attach_group_sparsity(around.model, group_weight=5.0)
    with pytest.raises(RuntimeError, match="was not called in this step"):
        train(around, tmp_path, rows(2), [GroupSparsityCallback()])
    handle.remove()
    attach_group_sparsity(around, group_weight=5.0)
    train(around, tmp_path, rows(2), [GroupSparsityCallback()])


def test_without_an_attachment_the_callback_says_so(tmp_path):
    with pytest.raises(ValueError, match="call attach_group_sparsity"):
        train(make("mixtral"), tmp_path, rows(2), [GroupSparsityCallback()])
