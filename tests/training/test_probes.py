"""What a probe holds, that equal runs leave equal ones, and that a run with one is the same run."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from moge_bench.presets import resolve
from moge_bench.training import text_task
from moge_bench.training.loop import train
from moge_bench.training.probe_inputs import brighten, replace_tokens, rotate, shift
from moge_bench.training.probes import router_margin

STEPS = 8
VISION = {"training.steps": STEPS, "training.batch_size": 64, "training.warmup_steps": 2,
          "moe.num_experts": 9, "model.depth": 2, "moe.blocks": [0, 1], "model.patch_size": 14,
          "model.hidden_size": 16, "model.num_heads": 2, "model.ffn_size": 24,
          "data.evaluate_test": False}  # fmt: skip
LANGUAGE = {"training.steps": 1, "training.batch_size": 4, "model.context": 16,
            "model.depth": 1, "moe.blocks": [0], "model.dropout": 0.2, "data.tokenizer": "bytes",
            "data.attacked_share": 0.0, "data.evaluate_test": False,
            "model.hidden_size": 16}  # fmt: skip
MOGE = resolve("tiny-vit", "moge", VISION)
DOSES = ("shift_1", "shift_2", "shift_3", "rotation_5", "rotation_10", "rotation_20",
         "brightness_0.25", "brightness_0.5", "brightness_1")  # fmt: skip


@pytest.fixture
def short_text(monkeypatch):
    whole = text_task.load_corpus
    monkeypatch.setattr(
        text_task, "load_corpus", lambda name: {s: [t[0][:3000]] for s, t in whole(name).items()}
    )


def header(path):
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["probe"])


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("probe") / "probe.safetensors"
    train(MOGE, probe=path)
    return path


@pytest.fixture(scope="module")
def probe(path):
    return load_file(path)


class TestOfImages:
    def test_holds_what_the_analyses_need(self, probe):
        # 2,048 tokens at 5 an image are 410 images, 2,050 tokens; N = 9, k = 1, d = 16, f = 24.
        layer = {"inputs": (2050, 16), "logits": (2050, 9), "scores": (2050, 9),
                 "experts": (2050, 1), "gate": (9, 16), "w_in": (9, 24, 16), "b_in": (9, 24),
                 "w_out": (9, 16, 24), "b_out": (9, 16)}  # fmt: skip
        for name in DOSES:
            layer |= {f"{name}.scores": (2050, 9), f"{name}.experts": (2050, 1)}
        for percent in (10, 25, 50, 75):
            layer |= {f"after_{percent}.experts": (2050, 1), f"after_{percent}.margin": (2050,)}
        expected = {f"block{b}.{name}": shape for b in (0, 1) for name, shape in layer.items()}
        expected |= {"labels": (2050,), "positions": (2050,)}
        assert {name: tuple(value.shape) for name, value in probe.items()} == expected

    def test_its_header(self, path):
        found = header(path)
        assert found["transformations"]["rotation_20"] == {"family": "rotation", "dose": 20}
        del found["transformations"]
        assert found == {
            "version": 3, "run_id": MOGE.run_id, "method": "moge", "seed": 0, "kind": "images",
            "top_k": 1, "activation": "gelu", "border": "torus", "group_size": 3,
            "map_shapes": {"block0": [3, 3], "block1": [3, 3]},
        }  # fmt: skip

    def test_tokens_of_an_image_have_its_label_and_their_place(self, probe):
        assert torch.equal(probe["labels"][:5], probe["labels"][0].expand(5))
        assert probe["positions"][:7].tolist() == [0, 1, 2, 3, 4, 0, 1]

    def test_its_images_are_a_sample_of_all_classes(self, probe):
        # 410 of 1,000 images of 10 classes: 41 of each, with a standard deviation of 6.
        counts = torch.bincount(probe["labels"][::5])
        assert len(counts) == 10 and counts.min() > 23 and counts.max() < 59

    def test_logits_scores_experts_and_gate_are_of_one_pass(self, probe):
        logits = probe["block1.logits"]
        assert torch.equal(probe["block1.scores"], logits.softmax(1))
        # In evaluation there is no noise: the expert is that of the largest logit.
        assert torch.equal(logits.argmax(1), probe["block1.experts"][:, 0].long())
        again = probe["block1.inputs"].float() @ probe["block1.gate"].T
        assert (again - logits).abs().max() < 2e-3 * logits.abs().max()  # inputs are float16

    def test_transformations_change_the_routing_more_with_their_dose(self, probe):
        scores = probe["block0.scores"]

        def change(name):
            return float((probe[f"block0.{name}.scores"].float() - scores).abs().mean())

        for family in (DOSES[:3], DOSES[3:6], DOSES[6:]):
            changes = [change(name) for name in family]
            assert 0 < changes[0] < changes[1] < changes[2]

    def test_a_killed_and_resumed_run_leaves_the_same_file(self, path, tmp_path):
        resumed, state = tmp_path / "probe.safetensors", tmp_path / "state.safetensors"

        def stop(done, _total):
            if done == 5:  # after 10, 25 and 50 %
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(MOGE, stop, checkpoint=state, probe=resumed, checkpoint_every_s=0.0)
        train(MOGE, checkpoint=state, probe=resumed)
        assert resumed.read_bytes() == path.read_bytes()

    def test_the_run_is_the_same_with_and_without(self, tmp_path):
        dropout = resolve("tiny-vit", "moge", {**VISION, "model.dropout": 0.2})
        assert train(dropout) == train(dropout, probe=tmp_path / "probe.safetensors")


def test_of_a_text(tmp_path, short_text):
    path = tmp_path / "probe.safetensors"
    train(resolve("tiny-lm", "moe", LANGUAGE), probe=path)
    probe = load_file(path)
    # 2,048 tokens are 128 windows of 16. The label is the token that follows.
    assert probe["tokens"].shape == probe["labels"].shape == (2048,)
    assert torch.equal(probe["tokens"][1:16], probe["labels"][:15].int())
    assert probe["block0.experts"].shape == (2048, 2)
    # round(1, 2, 5, 10 % of 2,048)
    assert [int(probe[f"words_{p}.replaced"].sum()) for p in (1, 2, 5, 10)] == [20, 41, 102, 205]
    found = header(path)
    assert (found["kind"], found["border"], found["group_size"]) == ("text", None, None)
    # One step is at once after 10, 25, 50 and 75 % of the steps.
    assert torch.equal(probe["block0.after_75.experts"], probe["block0.experts"])
    assert "block0.after_50.experts" not in probe


def test_a_dense_run_has_none(tmp_path):
    path = tmp_path / "probe.safetensors"
    train(resolve("tiny-vit", "dense", {**VISION, "training.steps": 1}), probe=path)
    assert not path.exists()


class TestTransformations:
    image = torch.arange(9.0).reshape(1, 1, 3, 3)  # 0 1 2 / 3 4 5 / 6 7 8

    def close(self, found, expected):
        return torch.allclose(found[0, 0], torch.tensor(expected), atol=1e-5)

    def test_shift_to_the_right_repeats_the_edge(self):
        moved = shift(self.image, torch.tensor([1.0]))
        assert self.close(moved, [[0.0, 0, 1], [3, 3, 4], [6, 6, 7]])
        moved = shift(self.image, torch.tensor([-2.0]))
        assert self.close(moved, [[2.0, 2, 2], [5, 5, 5], [8, 8, 8]])

    def test_a_quarter_turn_clockwise(self):
        turned = rotate(self.image, torch.tensor([90.0]))
        assert self.close(turned, [[6.0, 3, 0], [7, 4, 1], [8, 5, 2]])

    def test_a_turn_keeps_the_form_of_an_image_that_is_no_square(self):
        bar = torch.zeros(1, 1, 3, 5)
        bar[..., 1, 1:4] = 1.0  # three pixels in a row become three in a column
        turned = rotate(bar, torch.tensor([90.0]))[0, 0]
        assert torch.allclose(turned[:, 2], torch.ones(3), atol=1e-5)
        assert float(turned.sum()) == pytest.approx(3.0, abs=1e-4)

    def test_brightness_is_added(self):
        assert self.close(brighten(self.image, torch.tensor([-0.5])),
                          [[-0.5, 0.5, 1.5], [2.5, 3.5, 4.5], [5.5, 6.5, 7.5]])  # fmt: skip

    def test_tokens_are_replaced_one_for_one_and_doses_are_nested(self):
        tokens = torch.arange(200).reshape(2, 100)
        few, many = replace_tokens(tokens, 1), replace_tokens(tokens, 10)
        assert (int(few.replaced.sum()), int(many.replaced.sum())) == (2, 20)  # of 200
        assert not (few.replaced & ~many.replaced).any()
        kept = ~many.replaced
        assert torch.equal(many.inputs.flatten()[kept], tokens.flatten()[kept])
        assert torch.isin(many.inputs, tokens).all()


def test_router_margin():
    logits = torch.tensor([[3.0, 1.0, 0.5, -1.0], [3.0, 1.0, 0.5, -1.0]])
    experts = torch.tensor([[0, 1], [0, 3]])
    # Chosen 3 and 1, best other 0.5: 1 - 0.5. Chosen 3 and -1 by a bias, best other 1: -1 - 1.
    assert router_margin(logits, experts).tolist() == [0.5, -2.0]
