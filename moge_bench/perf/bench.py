"""Runs the declared cases: every candidate verified, then all of them timed in turns.

Legend: T tokens, N experts, k chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from moge_bench.perf import layers, peers, rows, verify
from moge_bench.perf.candidates import ROUTERS, Candidate, Options, Outputs, traffic_bytes
from moge_bench.perf.registry import Case, make_logits
from moge_bench.perf.rows import Row
from moge_bench.perf.statistics import ratio_interval
from moge_bench.perf.timing import clock_of, interleave, summarize
from moge_bench.training.device import exact_float32

Step = Callable[[], object]


@dataclass(frozen=True)
class Settings:
    """How to run: rounds per candidate, what to include, which backend is ours, the device."""

    rounds: int = 20
    warmup: int = 3
    compiled: bool = True
    peers: bool = True
    options: Options = field(default_factory=Options)


@contextmanager
def num_threads(count: int) -> Iterator[None]:
    """Run the body with ``count`` intra-op threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Seen(TorchDispatchMode):
    """Notes every op that reaches a kernel, the backward's included (it runs on this thread)."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def kernels_seen(step: Step) -> list[str]:
    """Return the names of the moge:: ops that one call of ``step`` really dispatched."""
    with _Seen() as seen:
        step()
    return sorted(name for name in seen.names if name.startswith("moge::"))


def what_ran(candidate: str, compiled: bool, options: Options, step: Step) -> str:
    """Return the kernel that one call really used; RuntimeError for a silent fallback."""
    if candidate in peers.PEER_PACKAGES:
        return peers.version(candidate)
    if not candidate.startswith("ours"):
        return "inductor" if compiled else "torch"
    seen = kernels_seen(step)
    if options.backend == "reference":
        return "reference"
    missing = {"moge::route", "moge::route_backward"} - set(seen)
    if missing:
        raise RuntimeError(f"fallback: {sorted(missing)} did not run; only {seen} did")
    code = "instruction_set" if torch.device(options.device).type == "cpu" else "cuda_architectures"
    return f"extension {rows.build_facts().get(code, 'unknown')} ({', '.join(seen)})"


class RouterTask:
    """The inputs of one router case, its oracle, and the timed step of every candidate."""

    def __init__(self, case: Case, options: Options) -> None:
        self.case, self.options = case, options
        self.logits = make_logits(case).to(options.device).requires_grad_()
        self.cotangent = verify.cotangents(case).to(options.device)
        data = self.logits.detach()
        self.truth = {
            loss: verify.oracle(data, case, torch.float64, with_loss=loss) for loss in (True, False)
        }
        self.plain = {
            loss: verify.oracle(data, case, torch.float32, with_loss=loss) for loss in (True, False)
        }
        self.scores = torch.softmax(data.double(), dim=-1)

    def gradient(self, outputs: Outputs, cotangent: torch.Tensor) -> torch.Tensor:
        """Return d(sum(cotangent * weights) + T * loss)/dlogits, as the oracle scales it."""
        weights, _, loss = outputs
        roots, seeds = [weights], [cotangent.to(weights.dtype)]
        if loss is not None:
            roots.append(loss)
            seeds.append(torch.full_like(loss, float(self.case.num_tokens)))
        return torch.autograd.grad(roots, self.logits, seeds)[0]

    def limit_step(self, job: str) -> Step:
        """Return the step of a limit: a copy of the logits, or torch.softmax and its backward."""
        logits, target = self.logits, torch.empty_like(self.logits.detach())
        if job == "copy":
            return lambda: target.copy_(logits.detach())
        cotangent = self.cotangent.to(logits.dtype)
        return lambda: torch.autograd.grad(torch.softmax(logits, -1), logits, cotangent)

    def prepare(self, candidate: Candidate) -> tuple[Step, verify.Verdict]:
        """Return the step to time and the verdict on what that step computes."""
        if candidate.job in ("copy", "softmax"):
            return self.limit_step(candidate.job), verify.Verdict(True, "a limit", {}, {}, 0, 0)
        forward = candidate.build(self.case, self.options)
        outputs = forward(self.logits)
        weights, experts, loss = outputs
        cotangent = (
            self.cotangent if experts.dtype == torch.bool else self.cotangent.gather(1, experts)
        )
        grad = self.gradient(outputs, cotangent)
        dense, chosen = verify.to_dense(weights.detach(), experts, self.case.num_experts)
        has_loss = loss is not None
        verdict = verify.verify(
            verify.Result(dense, chosen, None if loss is None else loss.detach(), grad),
            self.truth[has_loss], self.plain[has_loss], self.scores,
        )  # fmt: skip
        return lambda: self.gradient(forward(self.logits), cotangent), verdict


def _attempt(
    case: Case, candidate: Candidate, settings: Settings, task: RouterTask | layers.LayerTask
) -> tuple[Row, Step | None]:
    """Return the row of one candidate without its speed, and the step to time if it earned one."""
    row = Row(case.name, candidate.name, candidate.job, rows.OK, "", fields=case.fields())
    try:
        step, verdict = task.prepare(candidate)
        row.kernel = what_ran(candidate.name, candidate.compiled, settings.options, step)
    except ImportError as error:
        row.status, row.detail = rows.NOT_INSTALLED, f"{error}"
        return row, None
    except NotImplementedError as error:
        row.status, row.detail = rows.NOT_APPLICABLE, f"{error}"
        return row, None
    except Exception as error:  # a row that cannot run is a failed row, reported with its reason
        fell_back = "fallback" in str(error)
        row.status = rows.FALLBACK if fell_back else rows.ERROR
        row.detail = f"{type(error).__name__}: {error}".splitlines()[0]
        return row, None
    row.errors, row.bounds = verdict.errors, verdict.bounds
    row.mismatches, row.ties, row.detail = verdict.mismatches, verdict.ties, verdict.detail
    if not verdict.ok:
        row.status = rows.WRONG
        return row, None
    return row, step


def _publish(result: list[Row], samples: dict[str, list[float]], work: dict[str, float]) -> None:
    """Fill in the speeds of the rows that were timed."""
    copy = next((r for r in result if r.job == "copy" and r.candidate in samples), None)
    for row in result:
        if row.candidate not in samples:
            continue
        times = samples[row.candidate]
        summary = summarize([1e3 * seconds for seconds in times])
        row.median_ms, row.rounds = summary.median, summary.num_samples
        row.lower_quartile_ms, row.upper_quartile_ms = (
            summary.lower_quartile,
            summary.upper_quartile,
        )
        if row.bytes_model:
            row.gb_per_s = row.bytes_model / summary.median / 1e6
        if row.candidate in work:
            row.gflop_per_s = work[row.candidate] / summary.median / 1e6
        base = samples.get(row.ratio_against)
        if base and row.candidate != row.ratio_against and len(times) >= 4:
            logs = [math.log(t / b) for t, b in zip(times, base, strict=True)]
            interval = ratio_interval(logs)
            row.ratio_to_ours, row.ratio_low = interval.ratio, interval.low
            row.ratio_high = interval.high
    for row in result:
        if copy is not None and copy.gb_per_s and row.gb_per_s:
            row.share_of_copy = row.gb_per_s / copy.gb_per_s


def run_case(
    case: Case, settings: Settings, candidates: Sequence[Candidate] | None = None
) -> list[Row]:
    """Verify every candidate on ``case`` and time those that passed, interleaved; return rows.

    float32 is not rounded to TF32, which would make a convolution faster and wrong.
    """
    with num_threads(case.threads), exact_float32():
        router = case.op == "router"
        task = (
            RouterTask(case, settings.options)
            if router
            else layers.LayerTask(case, settings.options)
        )
        chosen = [
            candidate
            for candidate in candidates or (ROUTERS if router else layers.LAYERS)
            if (settings.compiled or not candidate.compiled)
            and (settings.peers or not candidate.peer)
        ]
        result, steps = [], {}
        for candidate in chosen:
            row, step = _attempt(case, candidate, settings, task)
            row.ratio_against = candidate.reference_candidate
            row.bytes_model = traffic_bytes(candidate.job, case) if router else None
            result.append(row)
            if step is not None:
                steps[candidate.name] = step
        clock = clock_of(settings.options.device)
        samples = interleave(steps, rounds=settings.rounds, warmup=settings.warmup, clock=clock)
        work = {} if router else {name: layers.useful_flop(case) for name in steps}
        _publish(result, samples, work)
    return result
