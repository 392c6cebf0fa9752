"""Execute one run: train it, and turn what happened, whatever it was, into its record.

Where runs are executed, one after the other or many at a time, is for executors/ to decide.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moge_bench.config import DENSE_RUN, RunConfig
from moge_bench.runs import provenance
from moge_bench.runs.record import Code, MetricValue, Record, RunError
from moge_bench.runs.store import RecordStore
from moge_bench.training.ranks import Ranks

StepCallback = Callable[[int, int], None]


@dataclass(frozen=True)
class Progress:
    """What a run in flight tells: steps done; or, once, how it ended."""

    config: RunConfig
    steps: int
    status: str | None = None  # "finished", "failed" or "unwritten"
    message: str = ""


def execute_run(
    config: RunConfig,
    code: dict[str, Any],
    on_step: StepCallback | None,
    folder: Path | None = None,
) -> Record:
    """Train one run in this process and return its record; an exception becomes a failed one.

    In ``folder``, a results folder, it keeps its state while it runs (checkpoints/), what its
    router did with fixed inputs (probes/), and the weights of a dense run (weights/) that keeps
    them; without one it keeps nothing, and cannot start from a dense run.
    """
    from moge_bench.training.loop import train

    started, begin = _now(), time.perf_counter()

    def record(**values: Any) -> Record:
        wall_s, rss = time.perf_counter() - begin, provenance.peak_rss_mib()
        return _record(config, code, started, wall_s, peak_rss_mib=rss, **values)

    try:
        files: dict[str, Any] = {} if folder is None else _files(folder, config, code)
        if config.model.upcycled_from == DENSE_RUN:
            files["dense_run"] = _find_dense_run(folder, config.dense_run, code)
        result = train(config, on_step, **files)
        # A NaN among the figures is refused by the record, and so fails the run by name.
        return record(
            status="finished" if result.diverged_at is None else "diverged",
            diverged_at=result.diverged_at, device=result.device, parameters=result.parameters,
            metrics=[MetricValue(**asdict(metric)) for metric in result.metrics],
            curves=result.curves, routing=result.routing, backends=result.backends,
            checks=result.checks,
        )  # fmt: skip
    except Exception as error:
        return record(status="failed", error=explain(error))


def _files(folder: Path, config: RunConfig, code: dict[str, Any]) -> dict[str, Path]:
    """Return where the run keeps its state, and where it leaves its probe and its weights."""
    # A checkpoint of other code is not found: a run is of one state of the code from end to end.
    state = f"{config.run_id}-{code['digest']}.safetensors"
    files = {
        "checkpoint": folder / "checkpoints" / state,
        "probe": folder / "probes" / f"{config.run_id}.safetensors",
    }
    if config.training.keep_weights and config.method == "dense":
        files["keep"] = folder / "weights" / state
    return files


def _find_dense_run(folder: Path | None, dense: RunConfig, code: dict[str, Any]) -> Path:
    """Return the weights of ``dense`` in ``folder``; where they are not, it is trained for them."""
    from moge_bench.training.loop import train

    if folder is None:
        raise ValueError("model.upcycled_from='dense-run' needs a results folder to find it in")
    training = dense.training.model_copy(update={"keep_weights": True})
    files = _files(folder, dense.model_copy(update={"training": training}), code)
    if not files["keep"].exists():
        result = train(dense, checkpoint=files["checkpoint"], keep=files["keep"])
        if result.diverged_at is not None:
            raise RuntimeError(
                f"the dense run {dense.run_id} diverged at step {result.diverged_at}: it leaves no "
                "weights to start from"
            )
    return files["keep"]


def drop_state(folder: Path, config: RunConfig) -> None:
    """Delete what killed attempts at the run left in ``folder`` to go on from, of any code."""
    for state in (folder / "checkpoints").glob(f"{config.run_id}-*.safetensors"):
        state.unlink()


def explain(error: Exception) -> RunError:
    """Return the error of a failed record."""
    return RunError(type=type(error).__name__, message=str(error), traceback=traceback.format_exc())


def failed_record(config: RunConfig, code: dict[str, Any], error: RunError) -> Record:
    """Return the record of a run that could not tell its own end."""
    return _record(config, code, _now(), 0.0, status="failed", error=error)


def _record(
    config: RunConfig, code: dict[str, Any], started: str, wall_s: float, **values: Any
) -> Record:
    return Record.model_validate(
        {
            "settings": config,
            "seed": config.seed,
            "started": started,
            "wall_s": round(wall_s, 3),
            "threads": config.training.threads,
            "device": config.device,
            "code": Code(**code),
            "versions": provenance.versions(),
            "machine": provenance.machine(),
            "build": provenance.extension_build(),
            **values,
        }
    )


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def pending(configs: list[RunConfig], store: RecordStore) -> list[RunConfig]:
    """Return the configs without a record; a failed one is tried again, a diverged one is not."""
    missing = []
    for config in configs:
        record = store.read(config.run_id)
        if record is None or record.status == "failed":
            missing.append(config)
    return missing


def save_record(config: RunConfig, store: RecordStore, record: Record) -> Progress:
    """Write ``record`` and return the last report of its run; "unwritten" if the disk refuses.

    Of the processes that share a run the first one writes.
    """
    message = f"{record.error.type}: {record.error.message}" if record.error else ""
    if not Ranks.launched().is_main:
        return Progress(config, config.training.steps, record.status, message)
    try:
        path = store.write(record)
    except OSError as error:
        reason = f"{store.path(record.run_id)} could not be written: {error}"
        return Progress(config, config.training.steps, "unwritten", reason)
    message = message or f"{path.name} after {record.wall_s:.0f} s"
    return Progress(config, config.training.steps, record.status, message)
