import math

import pytest
import torch

from moge_bench.models.build import build_model
from moge_bench.moe.insert import collect_aux
from moge_bench.presets import resolve
from moge_bench.training.loop import train
from moge_bench.training.tasks import make_task

SENTENCE = "the quick brown fox jumps over the lazy dog and runs away . "
SHORT = {
    "training.steps": 4, "training.batch_size": 4, "training.warmup_steps": 1,
    "model.context": 16, "data.tokenizer": "bytes",
}  # fmt: skip


@pytest.fixture
def corpus(tmp_path):
    for name, repeats in (("train", 40), ("valid", 4), ("test", 4)):
        (tmp_path / f"{name}.txt").write_text(SENTENCE * repeats)
    return str(tmp_path)


def config(corpus, method="moge", **overrides):
    return resolve("tiny-lm", method, {**SHORT, "data.name": corpus, **overrides})


def test_run_reports_perplexity_and_bits_per_byte_clean_and_attacked(corpus):
    result = train(config(corpus))
    names = {(metric.name, metric.split) for metric in result.metrics}
    splits = ("validation", "validation_attacked", "test", "test_attacked")
    assert names == {
        (name, split)
        for name in ("perplexity", "bits_per_byte", "cross_entropy")
        for split in splits
    }
    values = {(m.name, m.split): m.value for m in result.metrics}
    for split in splits:
        nats = values["cross_entropy", split]
        assert values["perplexity", split] == pytest.approx(math.exp(nats))
    assert len(result.checks["group_gradient_norms"]) == 3
    # Of the attacked text too it is told what the router did: other choices, for other words.
    loads = {(layer["split"], layer["block"]): layer["load"] for layer in result.routing}
    assert set(loads) == {(split, block) for split in splits for block in range(3)}
    for split in ("validation", "test"):
        clean, attacked = (loads[name, 0] for name in (split, f"{split}_attacked"))
        assert clean != attacked


def test_bits_per_byte_counts_the_bytes_of_the_text(corpus):
    metrics = {(m.name, m.split): m.value for m in train(config(corpus, "dense")).metrics}
    # Bytes tokenizer: n bytes and one separator at the end are predicted.
    num_bytes = len(SENTENCE) * 4
    nats = metrics["cross_entropy", "test"] * (num_bytes + 1)
    assert metrics["bits_per_byte", "test"] == pytest.approx(nats / math.log(2) / num_bytes)


def test_no_bits_per_byte_of_words_for_they_lose_text(corpus):
    result = train(config(corpus, "dense", **{"data.tokenizer": "words"}))
    assert {metric.name for metric in result.metrics} == {"perplexity", "cross_entropy"}


def test_a_huge_loss_is_recorded_without_a_perplexity(corpus):
    settings = config(corpus, "dense", **{"data.attacked_share": 0.0})
    task = make_task(settings)
    model = build_model(settings, task.vocabulary_size)
    model.transformer.wte.weight.data.mul_(1e5)  # tied: every logit is as much larger
    values = {m.name: m.value for m in task.evaluate(model, "test", 0).metrics}
    assert set(values) == {"bits_per_byte", "cross_entropy"}
    assert math.isfinite(values["cross_entropy"]) and values["cross_entropy"] > 709


def test_twenty_tokens_of_a_real_model_by_hand(tmp_path):
    """Separator, 18 bytes, separator: 20 tokens, 19 of them predicted, in windows of 8."""
    for name in ("train", "valid", "test"):
        (tmp_path / f"{name}.txt").write_text(SENTENCE[:18] if name == "test" else SENTENCE)
    settings = config(str(tmp_path), "moge", **{"model.context": 8, "data.attacked_share": 0.0})
    task = make_task(settings)
    model = build_model(settings, task.vocabulary_size).eval()
    tokens = [256, *SENTENCE[:18].encode(), 256]
    total = 0.0
    for begin in (0, 8, 16):  # the window reads 8 tokens and predicts the one after each
        read, following = tokens[begin : begin + 8], tokens[begin + 1 : begin + 9]
        with torch.no_grad():
            rows = model(torch.tensor([read])).logits[0].tolist()
        for row, token in zip(rows, following, strict=False):  # nothing follows the last one
            total -= row[token] - math.log(sum(map(math.exp, row)))
    values = {m.name: m.value for m in task.evaluate(model, "test", 0).metrics}
    assert values["perplexity"] == pytest.approx(math.exp(total / 19), rel=1e-6)
    assert values["bits_per_byte"] == pytest.approx(total / math.log(2) / 18, rel=1e-6)


@pytest.mark.parametrize("stride", [None, 3])
def test_uniform_model_scores_the_vocabulary_size(corpus, stride):
    settings = config(corpus, "dense", **{"data.stride": stride})
    task = make_task(settings)
    model = build_model(settings, task.vocabulary_size)
    model.transformer.wte.weight.data.zero_()  # tied: every logit is 0
    for metric in task.evaluate(model, "test", 0).metrics:
        if metric.name == "perplexity":
            assert metric.value == pytest.approx(257, rel=1e-6)


def test_any_stride_predicts_the_same_tokens(corpus):
    """A model that sees one token alone scores the same, whatever context it is offered."""
    values = []
    for stride in (None, 1, 5):
        settings = config(corpus, "dense", **{"data.stride": stride})
        task = make_task(settings)
        model = build_model(settings, task.vocabulary_size)
        for block in model.transformer.h:  # nothing of the past reaches the stream
            block.attn.c_proj.weight.data.zero_()
        model.transformer.wpe.weight.data.zero_()
        values.append([m.value for m in task.evaluate(model, "test", 0).metrics])
    assert values[1] == pytest.approx(values[0], rel=1e-6)
    assert values[2] == pytest.approx(values[0], rel=1e-6)


def test_no_attack_no_attacked_metrics(corpus):
    result = train(config(corpus, "dense", **{"data.attacked_share": 0.0}))
    assert {metric.split for metric in result.metrics} == {"validation", "test"}


@pytest.mark.parametrize("kind", ["momentum", "adam"])
def test_residual_rules_train_and_differ_from_plain(corpus, kind):
    plain = train(config(corpus, "moe"))
    other = train(config(corpus, "moe", **{"moe.residual.kind": kind}))
    assert other.metrics != plain.metrics
    assert all(math.isfinite(metric.value) for metric in other.metrics)


def test_targets_are_the_next_tokens(corpus):
    inputs, targets = make_task(config(corpus)).fixed_batch(3)
    assert inputs.shape == targets.shape == (3, 16)
    assert torch.equal(inputs.flatten()[1:], targets.flatten()[:-1])


def test_every_ffn_of_the_model_is_an_moe_layer_with_relu_experts(corpus):
    settings = config(corpus)
    model = build_model(settings, make_task(settings).vocabulary_size)
    with collect_aux(model) as auxes:
        model(torch.zeros(2, 16, dtype=torch.int64))
    assert len(auxes) == settings.model.depth
    assert model.transformer.h[0].mlp.layer.experts.activation == "relu"


def test_context_longer_than_the_corpus(corpus):
    with pytest.raises(ValueError, match=r"model\.context=9999 needs 10000 tokens"):
        make_task(config(corpus, **{"model.context": 9999}))


def test_window_longer_than_the_model(corpus):
    settings = config(corpus)
    model = build_model(settings, 257)
    with pytest.raises(ValueError, match=r"at most model\.context=16 a window, got 17"):
        model(torch.zeros(1, 17, dtype=torch.int64))


def test_training_text_of_one_token(tmp_path):
    for name in ("train", "valid", "test"):
        (tmp_path / f"{name}.txt").write_text("x")
    with pytest.raises(ValueError, match=r"needs 17 tokens of training text and .*; one has 3"):
        make_task(config(str(tmp_path)))


def test_document_shorter_than_the_window_is_scored_whole(tmp_path):
    for name, text in (("train", SENTENCE * 40), ("valid", "short"), ("test", "x")):
        (tmp_path / f"{name}.txt").write_text(text)
    result = train(config(str(tmp_path), "dense", **{"data.attacked_share": 0.0}))
    assert all(math.isfinite(metric.value) for metric in result.metrics)


def test_stride_longer_than_the_context_is_refused():
    with pytest.raises(ValueError, match=r"data\.stride=17 skips tokens"):
        resolve("tiny-lm", None, {"model.context": 16, "data.stride": 17})
