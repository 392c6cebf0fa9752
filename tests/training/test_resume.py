"""A run killed at any step and resumed gives the record of the undisturbed run, bit for bit."""

import pytest
import torch
from safetensors.torch import save

from moge_bench.presets import resolve
from moge_bench.training import loop, text_task
from moge_bench.training.batches import BatchStream
from moge_bench.training.checkpoint import load_checkpoint
from moge_bench.training.loop import train
from moge_bench.training.tasks import make_task

pytestmark = pytest.mark.usefixtures("few_images")

STEPS = 8
# 1,000 images: with batches of 330 an epoch is three steps, so that eight steps see three epochs.
VISION = {"training.steps": STEPS, "training.batch_size": 330, "training.warmup_steps": 2,
          "moe.num_experts": 9, "model.depth": 2, "moe.blocks": [0, 1], "model.patch_size": 14,
          "model.hidden_size": 16, "model.num_heads": 2, "model.ffn_size": 16,
          "data.evaluate_test": False}  # fmt: skip
LANGUAGE = {"training.steps": STEPS, "training.batch_size": 4, "model.context": 16,
            "model.depth": 1, "moe.blocks": [0], "model.dropout": 0.2, "data.tokenizer": "bytes",
            "data.attacked_share": 0.0, "data.evaluate_test": False, "model.hidden_size": 16,
            "training.gradient_accumulation": 2}  # fmt: skip
CONFIGS = {
    "moge": resolve("tiny-vit", "moge", VISION),
    "loss-free": resolve("tiny-vit", "moe", {**VISION, "moe.bias_update_rate": 0.01}),
    "dropout": resolve("tiny-lm", "moge", LANGUAGE),
    "averaged": resolve("tiny-vit", "moge", {**VISION, "training.ema_decay": 0.9}),
}


@pytest.fixture(autouse=True)
def short_text(monkeypatch):
    """The corpus of tiny-lm, cut to what a few windows need."""
    whole = text_task.load_corpus

    def cut(name):
        return {split: [texts[0][:3000]] for split, texts in whole(name).items()}

    monkeypatch.setattr(text_task, "load_corpus", cut)


class Killed(Exception):
    pass


def killed_after(config, steps, path):
    def on_step(done, _total):
        if done == steps:
            raise Killed

    with pytest.raises(Killed):
        train(config, on_step, checkpoint=path, checkpoint_every_s=0.0)


@pytest.mark.parametrize("name", CONFIGS)
def test_killed_twice_and_resumed(name, tmp_path):
    config, path = CONFIGS[name], tmp_path / "state.safetensors"
    undisturbed = train(config)
    killed_after(config, 2, path)
    killed_after(config, 5, path)
    assert load_checkpoint(path).step == 5
    steps = []
    resumed = train(config, lambda done, _: steps.append(done), checkpoint=path)
    assert steps == [6, 7, 8]  # nothing was done again
    assert resumed == undisturbed
    assert not path.exists()  # a finished run keeps no state


@pytest.mark.parametrize("method", ["moge", "moge-shuffled"])
def test_killed_after_the_last_step(method, tmp_path):
    """No step is made any more: filter and experts' places are those of the last one."""
    config, path = resolve("tiny-vit", method, VISION), tmp_path / "state.safetensors"
    undisturbed = train(config)
    killed_after(config, STEPS, path)
    steps = []
    assert train(config, lambda done, _: steps.append(done), checkpoint=path) == undisturbed
    assert steps == []


def test_with_losses_read_seldom(monkeypatch, tmp_path):
    """As on a GPU: the same curves and figures, and what a kill leaves unread is made again."""
    config = resolve("tiny-vit", "moge", {**VISION, "training.evaluate_every": 3})
    path, undisturbed = tmp_path / "state.safetensors", train(config)
    monkeypatch.setattr(loop, "_read_every", lambda device: 20)
    assert train(config) == undisturbed
    killed_after(config, 5, path)
    assert train(config, checkpoint=path) == undisturbed


def test_without_a_kill_the_checkpoints_change_nothing(tmp_path):
    config, path = CONFIGS["moge"], tmp_path / "state.safetensors"
    assert train(config, checkpoint=path, checkpoint_every_s=0.0) == train(config)


def test_a_torn_checkpoint_is_named_with_what_to_do(tmp_path):
    config, path = CONFIGS["moge"], tmp_path / "state.safetensors"
    killed_after(config, 1, path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"state\.safetensors is damaged .*delete it to start"):
        train(config, checkpoint=path)


def test_a_file_of_another_kind_is_no_checkpoint(tmp_path):
    path = tmp_path / "state.safetensors"
    path.write_bytes(save({"a": torch.zeros(1)}))
    with pytest.raises(ValueError, match="is damaged"):
        load_checkpoint(path)


def test_the_state_of_another_model_is_refused(tmp_path):
    path = tmp_path / "state.safetensors"
    killed_after(CONFIGS["moge"], 1, path)
    wider = resolve("tiny-vit", "moge", {**VISION, "moe.num_experts": 16})
    before = path.read_bytes()
    message = r"state\.safetensors is of another model .*size mismatch.*delete it to start that run"
    with pytest.raises(ValueError, match=message) as caught:
        train(wider, checkpoint=path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before  # the user's to delete
    deeper = resolve("tiny-vit", "moge", {**VISION, "model.depth": 3})
    with pytest.raises(ValueError, match="Missing key"):
        train(deeper, checkpoint=path)


def test_a_stream_found_again_gives_the_same_batches():
    task = make_task(CONFIGS["moge"])

    def stream():
        loader = task.loader(440, seed=7)  # two full batches an epoch; a step takes three
        return BatchStream(loader, loader.generator, per_step=3)

    first = stream()
    expected = [first.next_step() for _ in range(4)]
    states = [stream().state()]
    again = stream()
    for _ in range(3):
        again.next_step()
        states.append(again.state())
    for step, state in enumerate(states):
        found = stream()
        found.restore(state)
        for (images, labels), (wanted, labels_wanted) in zip(
            found.next_step(), expected[step], strict=True
        ):
            assert torch.equal(images, wanted) and torch.equal(labels, labels_wanted)
