"""Two processes with half of every batch each train as one process with all of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rank_samples import run_ranks
from safetensors.torch import load_file

from moge_bench.config import build_config
from moge_bench.data.decoded import SeededBatches
from moge_bench.presets import resolve
from moge_bench.training import text_task
from moge_bench.training.loop import train
from moge_bench.training.ranks import Ranks, check_processes
from moge_bench.training.tasks import make_task

SMALL = {"training.steps": 3, "training.batch_size": 16, "training.warmup_steps": 1,
         "moe.num_experts": 9, "data.evaluate_test": False}  # fmt: skip
# Without noise and dropout, which each rank draws for its own tokens; batch norm is a rank's own.
VISION = {**SMALL, "model.patch_size": 14, "model.hidden_size": 16, "model.num_heads": 2,
          "model.ffn_size": 16, "model.depth": 2, "moe.blocks": [0, 1], "model.stem": "patch",
          "moe.noise": False, "moe.balance": "switch", "moe.z_loss_weight": 0.1,
          "moe.bias_update_rate": 0.01, "training.gradient_accumulation": 2,
          "training.ema_decay": 0.5}  # fmt: skip
LANGUAGE = {**SMALL, "model.context": 16, "model.hidden_size": 16, "model.depth": 1,
            "moe.blocks": [0], "model.dropout": 0.0, "data.tokenizer": "bytes",
            "training.gradient_checkpointing": True}  # fmt: skip
NOISY = {**VISION, "moe.noise": True, "moe.balance": "vmoe", "model.dropout": 0.1}
DIVIDED = {"moe.num_experts": 8, "training.expert_parallel": True}


def config_of(preset, given, processes, method="moge"):
    given = {**given, "training.processes": processes}
    if processes == 1:  # which has all experts
        given.pop("training.expert_parallel", None)
    return resolve(preset, method, given)


def train_share(settings, checkpoint=None, stop=None):
    """Train as one of the ranks; with ``stop`` until after that step, which is saved."""
    whole = text_task.load_corpus
    text_task.load_corpus = lambda name: {k: [v[0][:3000]] for k, v in whole(name).items()}

    def on_step(done, _total):
        if done == stop:
            raise InterruptedError

    try:
        return train(build_config(settings), on_step, checkpoint=checkpoint, checkpoint_every_s=0.0)
    except InterruptedError:
        return None
    finally:
        text_task.load_corpus = whole


def numbers(result):
    """Every measured number of a run, named."""
    found = {("metric", m.name, m.split): m.value for m in result.metrics}
    found |= {("curve", p["name"], p["step"]): p["value"] for p in result.curves}
    found |= {("check", name, i): v for name, vs in result.checks.items() for i, v in enumerate(vs)}
    for layer in result.routing:
        named = {k: v for k, v in layer.items() if isinstance(v, float)}
        found |= {(layer["block"], layer["split"], k): v for k, v in named.items()}
    return found


@pytest.mark.parametrize("divided", [{}, DIVIDED], ids=["ddp", "expert parallel"])
@pytest.mark.parametrize(
    ("preset", "given"), [("tiny-vit", VISION), ("tiny-lm", LANGUAGE)], ids=["images", "text"]
)
def test_two_halves_are_the_whole(preset, given, divided):
    given = {**given, **divided}
    one = train_share(config_of(preset, given, 1).model_dump())
    ranks = run_ranks(2, train_share, config_of(preset, given, 2).model_dump())
    assert ranks[0] == ranks[1]  # what is measured is of both, and equal on both
    expected, found = numbers(one), numbers(ranks[0])
    assert found.keys() == expected.keys() and len(found) > 20
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=2e-4, abs=2e-6), name
    # Each token of the split was routed once: the sums are those of one process.
    loads = [[sum(layer["load"]) for layer in result.routing] for result in (one, ranks[0])]
    assert loads[0] == loads[1]


CONV = {"model.stem": "conv", "model.patch_size": 7, "training.ema_decay": None}


@pytest.mark.parametrize(
    ("given", "stop"), [({}, 2), (DIVIDED, 2), (CONV, 3)], ids=["ddp", "expert parallel", "conv"]
)
def test_a_run_of_two_processes_is_resumed_exactly(tmp_path, given, stop):
    """Each rank draws noise and dropout of its own, and goes on with them, and its experts.

    And with a batch norm's running statistics, which each rank has of its own images: after the
    last step they are evaluated as a checkpoint keeps them.
    """
    settings = config_of("tiny-vit", {**NOISY, **given}, 2).model_dump()
    path = tmp_path / "state.safetensors"
    undisturbed = run_ranks(2, train_share, settings)
    assert undisturbed[0] == undisturbed[1]
    assert run_ranks(2, train_share, settings, path, stop) == [None, None]
    assert path.exists()
    assert run_ranks(2, train_share, settings, path) == undisturbed
    assert not path.exists()


def probe_of(settings, path):
    train(build_config(settings), probe=path)


def test_the_probe_of_divided_experts_has_them_all(tmp_path):
    small = {**VISION, **DIVIDED, "data.evaluate_test": False}
    paths = [tmp_path / "1.safetensors", tmp_path / "2.safetensors"]
    probe_of(config_of("tiny-vit", small, 1).model_dump(), paths[0])
    run_ranks(2, probe_of, config_of("tiny-vit", small, 2).model_dump(), paths[1])
    one, two = (load_file(path) for path in paths)
    assert one.keys() == two.keys() and one["block0.w_in"].shape[0] == 8
    for name in ("block0.w_in", "block1.w_out", "block1.scores", "block0.after_50.margin"):
        assert torch.allclose(one[name].float(), two[name].float(), atol=2e-3), name


def test_what_cannot_be_divided_is_refused():
    def refused(message, processes=2, **given):
        with pytest.raises(ValueError, match=message):
            config_of("tiny-vit", {**VISION, **DIVIDED, **given}, processes)

    refused("needs moe.num_experts of a multiple of training.processes=2, got 9",
            **{"moe.num_experts": 9})  # fmt: skip
    refused("'no' or 'bf16', got 'fp16'", **{"training.precision": "fp16", "device": "cuda"})
    with pytest.raises(ValueError, match="needs processes of 2 or more, got processes=1"):
        resolve("tiny-vit", "moge", {"training.expert_parallel": True})
    # In a grid the dense arm has the setting too, and nothing to divide.
    dense = {k: v for k, v in {**VISION, **DIVIDED}.items() if not k.startswith("moe.")}
    assert config_of("tiny-vit", dense, 2, "dense").moe is None


@pytest.mark.parametrize(("count", "total"), [(1, 5), (2, 5), (3, 3), (4, 7)])
def test_shares_cover_everything_once(count, total):
    shares = [Ranks(rank, count).share(list(range(total))) for rank in range(count)]
    assert [item for share in shares for item in share] == list(range(total))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    with pytest.raises(ValueError, match=f"{count - 1} images are too few for training.processes"):
        Ranks(0, count).slice_of(count - 1, "images")


def test_the_halves_of_a_loader_are_its_batches():
    """In memory the whole batch is augmented; of decoded images a rank reads its own alone."""
    augmented = {**VISION, "data.flip": True, "data.crop_padding": 2, "data.mixup": 0.8}
    task = make_task(config_of("tiny-vit", augmented, 1))
    whole = next(iter(task.loader(8, 5)))
    halves = [next(iter(task.loader(8, 5, ranks=Ranks(rank, 2)))) for rank in range(2)]
    for expected, *parts in zip(whole, *halves, strict=True):
        assert torch.equal(torch.cat(parts), expected)

    def keys(part=None):
        return list(SeededBatches(20, 6, torch.Generator().manual_seed(1), part))

    shares = [keys(Ranks(rank, 2).share) for rank in range(2)]
    assert [a + b for a, b in zip(*shares, strict=True)] == keys()


def test_another_number_of_processes_is_refused(monkeypatch):
    config = config_of("tiny-vit", VISION, 2)
    with pytest.raises(ValueError, match=r"processes=2, and the launcher started 1: .*torchrun"):
        check_processes(config)
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_processes(config)
    with pytest.raises(ValueError, match="processes=1, and the launcher started 2"):
        check_processes(config_of("tiny-vit", VISION, 1))
    with pytest.raises(ValueError, match=r"multiple of gradient_accumulation=2 \* processes=3"):
        config_of("tiny-vit", VISION, 3)
    assert config.run_id != config_of("tiny-vit", VISION, 1).run_id  # the last bits differ


@pytest.mark.slow
def test_torchrun_leaves_one_record(tmp_path):
    settings = {**VISION, "training.processes": 2}
    given = [text for path, value in settings.items() for text in ("--set", f"{path}={value}")]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "-m", "moge_bench.cli", "train", "tiny-vit", *given, "--results", str(tmp_path)],
        capture_output=True, text=True, timeout=500,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("record: ") == 1
    (path,) = tmp_path.glob("runs/*/*.json")
    record = json.loads(path.read_text())
    assert record["status"] == "finished" and record["settings"]["training"]["processes"] == 2
    assert len(list(tmp_path.glob("probes/*"))) == 1 and not list(tmp_path.glob("checkpoints/*"))
