"""A run, or a step to be timed, leaves the process as it was found."""

import ctypes
import os

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from moge_bench.presets import resolve
from moge_bench.training import allocator
from moge_bench.training.device import exact_float32, rounds_to_tf32
from moge_bench.training.loop import train
from moge_bench.training.tasks import make_task
from moge_bench.training.trainer import TrainingStep

pytestmark = pytest.mark.usefixtures("few_images")

SHARED = (PartialState, AcceleratorState, GradientState)
SHORT = {"training.steps": 2, "training.batch_size": 16, "training.warmup_steps": 0}


def config(**training):
    return resolve(
        "tiny-vit", "dense", {**SHORT, **{f"training.{k}": v for k, v in training.items()}}
    )


def state():
    """Everything of the process that a run sets, and what else it could have."""
    return {
        "threads": torch.get_num_threads(),
        "deterministic": torch.get_deterministic_debug_mode(),
        "tf32": (torch.backends.cudnn.conv.fp32_precision, torch.backends.cudnn.allow_tf32),
        "filled": torch.utils.deterministic.fill_uninitialized_memory,
        "random numbers": torch.get_rng_state().tolist(),
        "accelerate": [dict(kind._shared_state) for kind in SHARED],
        "gradients": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "environment": {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"},
    }  # fmt: skip


@pytest.fixture(params=[False, True], ids=["plain", "deterministic"])
def found(request):
    """A process as its owner set it up, in one of two ways; put back at the end."""
    before = torch.get_num_threads()
    torch.use_deterministic_algorithms(request.param, warn_only=request.param)
    torch.set_num_threads(2 if request.param else 1)
    torch.manual_seed(5)
    yield state()
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(before)


def test_a_run_leaves_the_process_as_it_was(found):
    train(config(threads=3 - found["threads"]))
    assert state() == found


def test_so_does_one_that_raises(found):
    def stop(done, total):
        assert torch.are_deterministic_algorithms_enabled()
        assert not rounds_to_tf32()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config(threads=3 - found["threads"]), stop)
    assert state() == found


def test_so_does_a_step_that_is_timed(found):
    settings = config(threads=3 - found["threads"], precision="bf16")
    step = TrainingStep(settings, make_task(settings))
    assert state() == found
    step.score()
    assert state() == found
    step()  # starts its random numbers from the seed, so that its bytes are those of every call
    assert {k: v for k, v in state().items() if k != "random numbers"} == {
        k: v for k, v in found.items() if k != "random numbers"
    }


def test_a_step_that_is_timed_works_under_what_training_does(monkeypatch):
    step, seen = TrainingStep(config(), make_task(config())), []
    loss = step._trainer.task.loss

    def watched(*arguments):
        seen.append((torch.are_deterministic_algorithms_enabled(), rounds_to_tf32()))
        return loss(*arguments)

    monkeypatch.setattr(step._trainer.task, "loss", watched)
    assert torch.backends.cudnn.allow_tf32  # torch's default
    step()
    step.score()
    assert seen == [(True, False)] * 2 and step.tf32 is False


def test_precisions_set_by_the_other_interface_are_put_back():
    """After it allow_tf32 raises: torch keeps the two apart."""
    places = (torch.backends.cudnn.conv, torch.backends.cudnn.rnn)
    try:
        torch.backends.cudnn.conv.fp32_precision = "ieee"
        before = [place.fp32_precision for place in places]
        with exact_float32():
            assert not rounds_to_tf32()
        assert [place.fp32_precision for place in places] == before == ["ieee", "tf32"]
    finally:
        torch.backends.cudnn.allow_tf32 = True


def test_two_precisions_train_in_one_process_as_they_do_alone():
    alone = {precision: train(config(precision=precision)) for precision in ("no", "bf16")}
    assert alone["no"].metrics != alone["bf16"].metrics
    for precision in ("no", "bf16", "no"):
        assert train(config(precision=precision)) == alone[precision]


def test_an_accelerator_of_the_caller_is_left_alone():
    mine = Accelerator(mixed_precision="bf16", gradient_accumulation_steps=3)
    train(config())
    assert mine.mixed_precision == AcceleratorState().mixed_precision == "bf16"
    assert mine.gradient_accumulation_steps == 3


def test_steps_of_two_precisions_and_accumulations_take_turns():
    """Each is what it is alone: weights after two steps, whatever ran in between."""
    settings = [config(precision="no"), config(precision="bf16"), config(gradient_accumulation=2)]
    task = make_task(settings[0])

    def weights(step):
        return [p.detach().clone() for p in step._trainer.model.parameters()]

    alone = []
    for each in settings:
        step = TrainingStep(each, task)
        step(), step()
        alone.append(weights(step))
    steps = [TrainingStep(each, task) for each in settings]
    for step in [*steps, *reversed(steps)]:
        step()
    for step, expected in zip(steps, alone, strict=True):
        assert all(map(torch.equal, weights(step), expected))
    # In bf16 and in two halves the step is another one in the last bits.
    assert not all(map(torch.equal, alone[0], alone[1]))
    assert not all(map(torch.equal, alone[0], alone[2]))


def test_thresholds_of_the_allocator_are_given_back(monkeypatch):
    asked = []

    def set_thresholds(trim, mmap):
        asked.append((trim, mmap))
        return hasattr(ctypes.CDLL(None), "malloc_trim")

    monkeypatch.setattr(allocator, "_set_thresholds", set_thresholds)
    kept, largest = (2**31 - 1, 2**25), (2**26, 2**25)
    train(config())
    assert asked == [kept, largest]
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "4096")
    with pytest.raises(RuntimeError), allocator.freed_memory_kept():
        raise RuntimeError
    assert asked[2:] == [kept, (4096, 2**25)]
