"""smoge-s, as it is, on a small folder in the format of the WikiText-103 release."""

import random

import pytest

from moge_bench.config import build_config
from moge_bench.data.registry import find_data
from moge_bench.presets import PRESETS, resolve
from moge_bench.runs.execute import execute_run
from moge_bench.runs.record import summarize
from moge_bench.training.loop import train
from moge_bench.training.tasks import make_task

WORDS = [f"word{i}" for i in range(50)]
CODE = {"commit": None, "dirty": None, "digest": "0"}


def write_release(folder, articles=6):
    """Articles of " = Title = ", blank lines, and tokens with spaces around, <unk> among them."""
    draw = random.Random(0)
    for split, count in (("train", articles), ("valid", articles // 3), ("test", articles // 3)):
        lines = []
        for number in range(count):
            words = " ".join(draw.choices([*WORDS, "<unk>", "@-@", ","], k=120))
            lines += [" \n", f" = Article {number} = \n", " \n", f" {words} . \n", " \n"]
        (folder / f"wiki.{split}.tokens").write_text("".join(lines))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [n for n, p in PRESETS.items() if p.system.data.name == "wikitext-103"]
)
def test_every_system_trains_two_steps(tmp_path, name):
    """Whole windows of every size of the family; the vocabulary is the folder's."""
    write_release(tmp_path, articles=12)
    config = find_data(resolve(name, None, {
        "data.name": str(tmp_path), "training.steps": 2, "training.batch_size": 1,
        "training.gradient_accumulation": 1, "training.warmup_steps": 1,
        "data.evaluate_test": False,
    }))  # fmt: skip
    found = train(config)
    assert found.diverged_at is None and found.parameters["total"] > 3e5
    splits = {metric.split for metric in found.metrics}
    blocks = config.moe.blocks if config.moe is not None else ()
    assert len(found.routing) == len(blocks) * len(splits)


def test_two_steps_and_a_perplexity_a_word(tmp_path):
    write_release(tmp_path)
    config = find_data(resolve("smoge-s", None, {
        "data.name": str(tmp_path), "training.steps": 2, "training.batch_size": 2,
        "training.warmup_steps": 1,
    }))  # fmt: skip
    task = make_task(config)
    # 50 words, <unk>, "@-@", ",", "=", "Article", 6 numbers, "." and the end of a line or text.
    assert 50 + 3 + 2 + 6 + 1 <= task.vocabulary_size <= 50 + 3 + 2 + 6 + 1 + 3
    record = execute_run(build_config(config.model_dump()), CODE, None)
    assert record.error is None
    (perplexity,) = [m for m in record.metrics if (m.name, m.split) == ("perplexity", "test")]
    assert 10 < perplexity.value < 20 * task.vocabulary_size
    assert f"{perplexity.value:.4g} a word (windows of 256, stride 256)" in summarize(record)
    assert record.parameters["active"] < record.parameters["total"]
