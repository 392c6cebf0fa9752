"""results/reliability.md, from the figures alone: the same files give the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tools.reliability.shown import SHOWN

_TITLES = {
    "ops": "Random cases of the ops under sanitizers",
    "fuzz": "Readers of files, fuzzed",
    "kills": "Studies killed and started again",
    "memory": "Memory of a long process",
}


def render(figures: dict[str, dict[str, Any] | None]) -> str:
    """Return the page; ``figures``: part -> what its file holds, None where it was not run."""
    lines = [
        "# Reliability, with figures", "",
        "What the package survives. `make reliability` makes this page from the files beside it in "
        "`reliability/`; each part says on what it ran, how many, how long, and what it found.", "",
    ]  # fmt: skip
    for part, title in _TITLES.items():
        lines += [f"## {title}", ""]
        found = figures.get(part)
        if found is None:
            lines += ["Not run yet.", ""]
            continue
        lines += [_SAYS[part](found["found"]), "", _on(found), ""]
    lines += ["## What ordinary tests show", "", "`make test` runs these every time.", ""]
    for sentence, tests in SHOWN.items():
        lines += [f"- {sentence}:", *(f"  `{test}`" for test in tests)]
    return "\n".join(lines) + "\n"


def _on(found: dict[str, Any]) -> str:
    on = found["on"]
    changed = " with changes" if on["commit"].endswith("+dirty") else ""
    return (
        f"{found['at'][:10]}, commit {on['commit'][:12]}{changed} (code {on['code']}), torch "
        f"{on['torch']}, Python {on['python']}, {on['compiler']}, {on['cpu']}, {on['cores']} "
        f"cores: {_time(found['wall_s'])}, {_time(found['processor_s'])} of processor time."
    )


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _findings(lines: list[str], none: str) -> str:
    """Return "Found: ..." with a line a finding, or the sentence that there is none."""
    if not lines:
        return none
    return "\n".join([f"**{len(lines)} found:**", "", *(f"- {line}" for line in lines)])


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _ops(found: dict[str, Any]) -> str:
    of = ", ".join(f"{count:,} of {op}" for op, count in found["of"].items())
    said = (
        f"{found['cases']:,} cases ({of}), drawn from seed {found['seed']}, forward and backward, "
        f"divided among the instruction sets {', '.join(found['instruction_sets'])}. T from 0 to "
        "1,100, N from 1 to 1,024 with every k, and groups that fit of up to 50 a side, four "
        "dtypes (experts: three), "
        "transposed, strided, repeated and offset views, ties, huge, subnormal, NaN and infinite "
        "values, and every option of the wider routing. Each must give the reference's error, or "
        "its values within the tolerance of the tests; the extension is compiled with "
        f"`{found['flags']}`. dispatch and combine have kernels on a GPU alone "
        "(`make sanitize` runs those)."
    )
    none = "No case differed, and the sanitizers reported nothing."
    lines = [
        f"case {each['index']} ({each['instruction_set']}): {_one_line(each['what'])}"
        for each in found["findings"]
    ]
    return f"{said}\n\n{_findings(lines, none)}\n\nBeyond 2^31 entries: {found['large']}."


def _fuzz(found: dict[str, Any]) -> str:
    said = (
        f"{found['minutes']:g} minutes of atheris, {found['seconds_each']} s a reader, from "
        "committed files. Allowed is what the command line says in a sentence: ValueError of what "
        "a file holds, OSError of the disk."
    )
    table = ["| reader | executions | refused | branches | inputs kept |", "|---|---|---|---|---|"]
    lines = []
    for name, each in found["targets"].items():
        refused = ", ".join(f"{n} {count:,}" for n, count in sorted(each["raised"].items()))
        table.append(
            f"| {name} | {each['executions']:,} | {refused or 'none'} | "
            f"{each.get('branches', '')} | {each.get('corpus', '')} |"
        )
        lines += [f"{name}: {at}: {_one_line(what)}" for at, what in each["findings"].items()]
    rows = "\n".join(table)
    return f"{said}\n\n{rows}\n\n{_findings(lines, 'No other exception came out of a reader.')}"


def _kills(found: dict[str, Any]) -> str:
    said = (
        f"`moge-bench ablate` of {found['runs_each']} runs, its state saved after every step, "
        f"ended by SIGKILL at {found['kills']} moments drawn from the "
        f"{found['undisturbed_s']:.0f} s that it takes undisturbed, and started again each time; "
        f"{found['studies']} studies came to their end."
    )
    none = (
        "Every record was that of the undisturbed study in all but its times, and no temporary "
        "file or state was left."
    )
    return f"{said}\n\n{_findings(found['differing'], none)}"


def _memory(found: dict[str, Any]) -> str:
    return (
        f"{found['minutes']:g} minutes of one process: {found['training_steps']:,} training steps "
        f"in runs of twenty, each with a model of its own, and {found['routings']:,} routings "
        f"forward and backward in turns. Resident memory after the first tenth: "
        f"{found['first_mib']:.0f} MiB, at the end {found['last_mib']:.0f} MiB; the slope of "
        f"{found['samples']:,} samples is {found['slope_mib_per_hour']:+.1f} MiB an hour "
        f"({found['low']:+.1f} to {found['high']:+.1f}, 95%, as if samples were independent)."
    )


_SAYS: dict[str, Callable[[dict[str, Any]], str]] = {
    "ops": _ops, "fuzz": _fuzz, "kills": _kills, "memory": _memory
}  # fmt: skip
PARTS = tuple(_SAYS)
