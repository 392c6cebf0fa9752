import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from record_samples import make_record
from typer.testing import CliRunner

from moge_bench.cli import app
from moge_bench.cli.run import _default_jobs
from moge_bench.ops import extension, self_check
from moge_bench.perf import cells
from moge_bench.presets import resolve
from moge_bench.runs.provenance import code_digest
from moge_bench.runs.store import RecordStore
from moge_bench.study.grid import default_grid_path, load_grid
from moge_bench.study.manifest import manifest_path, read_manifest

pytestmark = pytest.mark.usefixtures("few_images")

TINY = ["--set", "training.steps=2", "--set", "training.batch_size=8"]


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_doctor_tries_the_ops_and_names_what_runs(monkeypatch):
    # `make kernels` leaves the CUDA library as it is.
    monkeypatch.setattr(extension, "stale_cuda_build", lambda: None)
    result = run("doctor")
    assert result.exit_code == 0, result.output
    for name in ("route", "group_norm", "data fashion-mnist-10k"):
        assert re.search(rf"^ok +{name}", result.output, re.MULTILINE), name
    assert "worst difference" in result.output


def test_doctor_calls_a_broken_tie_rule_broken(monkeypatch):
    sound = self_check.route

    def reversed_ties(logits, top_k, *, backend, **options):
        r = sound(logits, top_k, backend=backend, **options)
        if backend == "extension":
            equal = r.weights[:, :-1] == r.weights[:, 1:]
            r.experts = r.experts.clone()  # the op keeps its own for the backward pass
            r.experts[:, :-1] = torch.where(equal, r.experts[:, 1:], r.experts[:, :-1])
        return r

    monkeypatch.setattr(self_check, "route", reversed_ties)
    result = run("doctor")
    assert result.exit_code == 1
    output = " ".join(result.output.split())
    assert re.search(r"BROKEN route T=\d+ .* ties float32: experts differs", output)
    assert re.search(r"ok group_norm as the reference in", output)


@pytest.mark.parametrize(
    "problem", ["ImportError: gone", "it was built for torch 1.9, and 2.13.0 runs"]
)
def test_doctor_fails_without_the_extension_and_says_why(monkeypatch, problem):
    monkeypatch.setattr(extension, "load", lambda: (None, problem))
    monkeypatch.setattr(extension, "_MODULE", None)
    result = run("doctor")
    assert result.exit_code == 1
    output = " ".join(result.output.split())
    assert f"BROKEN extension {problem}; build it with `make build`" in output
    assert "cuda library not tried: it needs the extension" in output


def test_doctor_says_what_cuda_can_do(monkeypatch):
    built = SimpleNamespace(
        source_hash="abc", architectures="9.0", nvcc="13.0", torch_abi="2.13", __name__="_cuda"
    )
    monkeypatch.setattr(extension, "load_cuda", lambda: (built, ""))
    monkeypatch.setattr(extension, "stale_cuda_build", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    output = " ".join(run("doctor").output.split())
    assert "cuda library build abc, nvcc 13.0, for 9.0, torch >= 2.13" in output
    assert "no CUDA kernel can run here" in output
    monkeypatch.setattr(extension, "load_cuda", lambda: (None, "ImportError: none"))
    result = run("doctor")  # optional: its absence breaks nothing
    assert result.exit_code == 0 and "MOGE_CUDA=1" in result.output


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ("moe.regularizer=simbal", "method='moe' fixes it to 'none'; take another method"),
        ("moe.regularizer=simbl", "method='moe' fixes it to 'none'; take another method"),
        ("moe.group.weight=1", "method='moe' has no moe.group"),
    ],
)
def test_train_refuses_a_setting_that_its_method_lets_have_no_effect(tmp_path, setting, why):
    result = run("train", "tiny-vit", "--method", "moe", "--set", setting, "--results", tmp_path)
    assert result.exit_code == 2
    assert why in " ".join(result.output.split())
    assert not list(tmp_path.rglob("*.json"))


def test_train_saves_a_record_and_says_where(tmp_path):
    result = run(
        "train", "tiny-vit", "--method", "dense", "--seed", 4, *TINY, "--results", tmp_path
    )
    assert result.exit_code == 0, result.output
    (path,) = (tmp_path / "runs").glob("??/*.json")
    assert str(path) in result.output.replace("\n", "")
    record = RecordStore(tmp_path).read(path.stem)
    assert (record.seed, record.settings.method, record.settings.training.steps) == (4, "dense", 2)


def test_a_run_that_has_a_record_is_not_trained_again(tmp_path):
    arguments = ("train", "tiny-vit", "--method", "dense", *TINY, "--results", tmp_path)
    assert run(*arguments).exit_code == 0
    (path,) = (tmp_path / "runs").glob("??/*.json")
    before = path.read_bytes()
    result = run(*arguments)
    assert result.exit_code == 0 and "it has a record already" in result.output
    assert path.read_bytes() == before  # evidence is not rewritten


def test_without_resume_the_state_of_a_killed_run_is_dropped(tmp_path):
    config = resolve("tiny-vit", "dense", {"training.steps": 2, "training.batch_size": 8})
    state = tmp_path / f"checkpoints/{config.run_id}-{code_digest()}.safetensors"
    state.parent.mkdir()
    state.write_bytes(b"torn")
    arguments = ("train", "tiny-vit", "--method", "dense", *TINY, "--results", tmp_path)
    result = run(*arguments)
    assert result.exit_code == 1 and "delete it to start that run anew" in result.output
    assert run(*arguments, "--no-resume").exit_code == 0
    assert not state.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "tiny-vot"], "no preset is called 'tiny-vot'; the nearest is 'tiny-vit'"),
        (["train", "tiny-vit", "--set", "moe.topk=2"], "'moe.topk'; the nearest is 'moe.top_k'"),
        (["train", "tiny-vit", "--set", "steps"], "--set takes a.b=value, got 'steps'"),
        (["ablate", "none.yaml"], "grid file none.yaml cannot be read"),
        (["ablate", "--executor", "slurm"], "--executor must be 'local' or 'ray', got 'slurm'"),
        (["tables", "--results", "nowhere"], "no study was run in nowhere"),
        (["figures", "--results", "nowhere"], "no study was run in nowhere"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_dry_run_shows_the_runs_and_touches_nothing(tmp_path):
    result = run("ablate", "--dry-run", "--results", tmp_path / "results")
    assert result.exit_code == 0, result.output
    assert "quick: " in result.output
    assert "to do" in result.output
    assert not (tmp_path / "results").exists()


def write_grid(folder, *, batch_size, metrics, processes=1):
    """Write the file of a study of two arms with a seed and two steps; return its path."""
    grid = {
        "name": "two", "question": "What happens to two runs?",
        "base": {"preset": "tiny-vit", "seeds": [0],
                 "set": {"training.steps": 2, "training.batch_size": batch_size,
                         "training.processes": processes}},
        "axes": {"method": ["dense", "moe"]},
        "table": {"rows": "method", "metrics": metrics},
    }  # fmt: skip
    path = folder / "two.yaml"
    path.write_text(yaml.safe_dump(grid))
    return path


def test_limit_and_failure_set_the_exit_code(tmp_path):
    path = write_grid(tmp_path, batch_size=8, metrics="top1_accuracy")
    first = load_grid(path).configs[0]
    torn = tmp_path / f"results/checkpoints/{first.run_id}-{code_digest()}.safetensors"
    torn.parent.mkdir(parents=True)
    torn.write_bytes(b"torn")
    result = run("ablate", path, "--results", tmp_path / "results", "--limit", 1)
    assert result.exit_code == 1
    assert "failed: tiny-vit dense seed=0, ValueError: checkpoint" in result.output
    assert "delete it to start that run anew" in result.output
    assert RecordStore(tmp_path / "results").read(first.run_id).status == "failed"
    assert len(list((tmp_path / "results/runs").glob("??/*.json"))) == 1
    assert "Incomplete" in result.output


def test_timing_waits_for_the_runs_that_a_limit_leaves(tmp_path, monkeypatch):
    path = write_grid(tmp_path, batch_size=8, metrics="tokens_per_second")
    finished_when_timed = []

    def measure(_grid, store, _speeds, _announce):
        finished_when_timed.append(len(list(store.runs.glob("??/*.json"))))

    monkeypatch.setattr(cells, "measure_study", measure)
    for _ in range(2):
        result = run("ablate", path, "--results", tmp_path / "results", "--limit", 1)
        assert result.exit_code == 0, result.output
    assert finished_when_timed == [2]


def test_shards_divide_the_runs_of_a_study_whatever_is_done_already(tmp_path):
    """Job i of n: every run is in one shard, the same one before and after others have ended."""
    ids = [config.run_id for config in load_grid(default_grid_path()).configs]

    def listed(shard):
        output = run("ablate", "--dry-run", "--shard", shard, "--results", tmp_path).output
        return re.findall(r"^(?:to do|finished) +(\w+)", output, re.MULTILINE)

    shares = [listed(f"{i}/4") for i in (1, 2, 3, 4)]
    assert shares == [ids[i::4] for i in range(4)]
    store = RecordStore(tmp_path)
    for config in load_grid(default_grid_path()).configs[:5]:
        store.write(make_record(config))
    assert [listed(f"{i}/4") for i in (1, 2, 3, 4)] == shares
    # Runs 0 to 4 are done, so of shard 2/4, which has runs 1, 5, 9, ..., the first one.
    said = run("ablate", "--dry-run", "--shard", "2/4", "--results", tmp_path).output
    count = len(shares[1])
    assert said.startswith(f"quick, shard 2/4: {count} runs, 1 done, {count - 1} to do\n")


def test_a_dry_run_tells_what_a_limit_leaves_for_later(tmp_path):
    path = write_grid(tmp_path, batch_size=8, metrics="top1_accuracy")
    result = run("ablate", path, "--dry-run", "--limit", 1, "--results", tmp_path)
    states = re.findall(r"^(to do|later|finished) ", result.output, re.MULTILINE)
    assert states == ["to do", "later"]


@pytest.mark.parametrize("mode", [[], ["--dry-run"]])
def test_a_study_of_runs_that_share_a_batch_is_for_torchrun(tmp_path, mode):
    path = write_grid(tmp_path, batch_size=8, metrics="top1_accuracy", processes=2)
    result = run("ablate", path, *mode, "--results", tmp_path / "results")
    assert result.exit_code == 2 and not (tmp_path / "results").exists()
    assert "training.processes=2" in result.output and "torchrun" in result.output
    assert run("ablate", path, "--limit", 0, "--results", tmp_path / "results").exit_code == 0
    assert manifest_path(tmp_path / "results", "two").exists()


def test_a_limit_of_none_declares_the_study_and_shows_its_tables(tmp_path):
    """Of data that are not here too: the declaration comes before the download."""
    path = Path(__file__).parents[2] / "ablations/imagenet.yaml"
    result = run("ablate", path, "--limit", 0, "--results", tmp_path)
    assert result.exit_code == 0, result.output
    assert "imagenet: Cannot tell" in result.output and "18 runs are left" in result.output
    (declared,) = read_manifest(manifest_path(tmp_path, "imagenet")).declarations
    assert declared.digest == load_grid(path).file.digest
    markdown = (tmp_path / "studies/imagenet/tables.md").read_text()
    assert "| published" in markdown and "73.1 % top-1 accuracy, ImageNet-1K val" in markdown
    assert not list((tmp_path / "runs").rglob("*.json"))


def test_a_shard_trains_its_runs_and_no_other(tmp_path):
    path = write_grid(tmp_path, batch_size=8, metrics="top1_accuracy")
    first, second = load_grid(path).configs
    for _ in range(2):  # the second time it has none left
        result = run("ablate", path, "--results", tmp_path / "results", "--shard", "2/2")
        assert result.exit_code == 0, result.output
        assert "1 runs are left" in result.output
        store = RecordStore(tmp_path / "results")
        assert (store.read(first.run_id), store.read(second.run_id).status) == (None, "finished")


@pytest.mark.parametrize("shard", ["0/2", "3/2", "2", "a/b", "1/0"])
def test_a_shard_is_one_of_n(shard):
    result = run("ablate", "--shard", shard)
    assert result.exit_code == 2 and "--shard must be i/n with 1 <= i <= n" in result.output


@pytest.mark.parametrize(("devices", "jobs"), [(["cpu"], 8), (["cuda"], 4), (["cpu", "cuda"], 4)])
def test_runs_at_a_time(devices, jobs, monkeypatch):
    """16 cores by 2 threads a run carry 8; a GPU takes 4."""
    monkeypatch.setattr("moge_bench.system.available_cores", lambda: 16)
    configs = [resolve("tiny-vit", "moe", {"device": device, "training.threads": 2}, 0)
               for device in devices]  # fmt: skip
    assert _default_jobs(configs) == jobs
