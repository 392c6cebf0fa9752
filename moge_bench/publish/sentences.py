"""What a declared contrast came to, in one sentence: the verdict, the numbers behind it, its n."""

from __future__ import annotations

from typing import Any

from moge_bench.publish.layout import axis_title, key_label
from moge_bench.study.answer import Answer
from moge_bench.study.contrasts import LEVEL, Sample
from moge_bench.study.declared import STEPS, DeclaredContrast
from moge_bench.study.estimate import CellResult, Estimate
from moge_bench.study.verdicts import CANNOT_TELL, Tested

NOTHING_DECLARED = "No primary contrast is declared: nothing in this study is a claim."


def axis_value(value: Any) -> str:
    """Return an axis value for people: 100, not 100.0."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def subject(declared: DeclaredContrast) -> str:
    """Return what is compared: "moge against moe", "group size 3 against 2"."""
    ours, theirs = map(axis_value, declared.contrast)
    title = "" if declared.axis == "method" else f"{axis_title(declared.axis)} "
    return f"{title}{ours} against {theirs}"


def quantity(declared: DeclaredContrast) -> str:
    """Return in what: "points of test top-1 at experts 64", with what a trend is over."""
    number = declared.number.title_on(declared.where)
    words = f"{declared.number.contrast_unit} of {number}".strip().removeprefix("of ")
    if declared.at:
        at = [f"{axis_title(a)} {' or '.join(map(axis_value, v))}" for a, v in declared.at.items()]
        words += f" at {', '.join(at)}"
    if declared.over is None:
        return words
    over = axis_title(declared.over)
    if declared.between is not None:
        first, second = map(axis_value, declared.between)
        return f"{words} more at {over} {first} than at {second}"
    return f"{words} per {STEPS[declared.scale][0]} of {over}"


def place(cell: CellResult) -> str:
    """Return where a cell stands: "experts 64, k 1"; "everywhere" where no other axis matters."""
    at = cell.pair.at
    return key_label(list(at), tuple(map(axis_value, at.values()))) if at else "everywhere"


def signed(value: float, declared: DeclaredContrast) -> str:
    """Return a contrast's number with its sign, rounded as the metric is; "0.00" has none."""
    digits = declared.number.digits
    shown = round(value, digits)
    return f"{shown:+,.{digits}f}" if shown else f"{0:.{digits}f}"


def with_interval(
    value: float, low: float | None, high: float | None, declared: DeclaredContrast
) -> str:
    """Return "+0.38 [+0.07; +0.68]", or "+0.38" without an interval."""
    text = signed(value, declared)
    if low is None or high is None:
        return text
    return f"{text} [{signed(low, declared)}; {signed(high, declared)}]"


def sample_cell(sample: Sample, declared: DeclaredContrast) -> str:
    """Return ``with_interval`` of a sample."""
    return with_interval(sample.mean, sample.low, sample.high, declared)


def estimate_cell(found: Estimate) -> str:
    """Return "+0.38 [+0.07; +0.68] (n = 4 seeds)"."""
    text, said = "-", f"n = {seeds(found)}"
    if found.contrast is not None:
        text = sample_cell(found.contrast.sample, found.declared)
        if found.left_out:
            said += f", {len(found.entered)} of {len(found.cells)} cells"
    if found.diverged:
        said += f", {found.diverged} run{'s' if found.diverged != 1 else ''} diverged"
    return f"{text} ({said})"


def margin(declared: DeclaredContrast) -> str:
    """Return the margin with its unit: "0.5 points"."""
    return f"{declared.margin:g} {declared.unit}".strip()


def declaration(kind: str, declared: DeclaredContrast) -> str:
    """Return "primary: moge against moe, points of test top-1; margin 0.5 points"."""
    return f"{kind}: {subject(declared)}, {quantity(declared)}; margin {margin(declared)}"


def smallest_cell(tested: Tested) -> str:
    """Return the smallest effect that would have been seen, or a dash."""
    if tested.smallest_effect is None:
        return "-"
    return f"{tested.smallest_effect:.{tested.found.declared.number.digits}f}"


def verdict_words(tested: Tested) -> str:
    """Return the verdict, and of an equivalence that is none of nothing the side: "equivalent,
    above zero"."""
    return f"{tested.verdict}, {tested.side}" if tested.side else tested.verdict


def verdict_cell(tested: Tested) -> str:
    """Return the verdict in words, and whether runs are still to come."""
    words = verdict_words(tested)
    return words if tested.found.complete else f"{words} (provisional)"


def contrasts_said(secondary: int) -> str:
    """Return what stands under a table of a study's declared contrasts."""
    said = (
        "Estimate [95 % interval, Student's t over seeds, of each alone], n seeds with both arms "
        "of every cell; bold where p < 0.05. p: two-sided paired t test. Equivalence: the larger p "
        "of two one-sided t tests against the margin."
    )
    smallest = "the true one that this n shows with 80 % power"
    if secondary > 1:
        said += f" Both after Holm's correction over the {secondary} secondary ones."
        smallest += f", of a secondary one at p < 0.05 / {secondary}"
    return f"{said} Smallest effect: {smallest}."


def probability(p: float | None) -> str:
    """Return "0.034", "0.0498" beside the level, "< 0.001", or a dash where nothing was tested."""
    if p is None:
        return "-"
    return "< 0.001" if p < 0.001 else f"{p:.{4 if round(p, 3) == LEVEL else 3}f}"


def _p(name: str, p: float) -> str:
    text = probability(p)
    return f"{name} {text}" if text.startswith("<") else f"{name} = {text}"


def seeds(found: Estimate) -> str:
    """Return "10 seeds", or "7 of 10 seeds"."""
    if found.n == found.planned:
        return f"{found.n} seed{'s' if found.n != 1 else ''}"
    return f"{found.n} of {found.planned} seeds"


def answer_sentence(answer: Answer) -> str:
    """Return a study's answer in words."""
    return sentence(answer.primary) if answer.primary is not None else NOTHING_DECLARED


def sentence(tested: Tested) -> str:
    """Return verdict, estimate, interval, p and n; of a null what would have been seen; and what
    is missing."""
    word = tested.verdict
    side = f", and {tested.side}" if tested.side else ""
    said = f"{word.capitalize()}{_meaning(tested.found, word)}{side}: {_finding(tested)}"
    if word not in ("better", "worse", "higher", "lower"):
        said += _null(tested, word)
    return f"{said}.{_absent(tested.found)}"


def _meaning(found: Estimate, word: str) -> str:
    declared = found.declared
    if word == "equivalent":
        return f" within {margin(declared)}"
    if declared.over is None or declared.between is not None or word == CANNOT_TELL:
        return ""
    return f" with more {axis_title(declared.over)}"


def _finding(tested: Tested) -> str:
    found, declared = tested.found, tested.found.declared
    if found.contrast is None:
        return f"{subject(declared)} in {quantity(declared)}: no seed has both arms, n = 0"
    sample = found.contrast.sample
    parts = []
    if sample.low is not None and sample.high is not None:
        low, high = signed(sample.low, declared), signed(sample.high, declared)
        parts.append(f"95 % interval {low} to {high}")
    if tested.p is not None:
        parts.append(_p("p", tested.p) + (", Holm" if tested.family > 1 else ""))
    if sample.spread == 0:
        parts.append("the same in every seed")
    cells = f", over {len(found.entered)} cells" if len(found.entered) > 1 else ""
    parts.append(f"n = {seeds(found)}{cells}")
    value = signed(sample.mean, declared)
    return f"{subject(declared)}, {value} {quantity(declared)} ({'; '.join(parts)})"


def _null(tested: Tested, word: str) -> str:
    """Say what would have been seen, and, where nothing was decided, how many seeds would."""
    found, declared, unit = tested.found, tested.found.declared, tested.found.declared.unit
    said = ""
    if word == "equivalent" and found.equivalence and tested.equivalence_p is not None:
        low, high = (signed(v, declared) for v in (found.equivalence.low, found.equivalence.high))
        said = (
            f"; the 90 % interval, {low} to {high}, lies within the margin "
            f"({_p('p', tested.equivalence_p)})"
        )
    if tested.smallest_effect is not None:
        smallest = f"{smallest_cell(tested)} {unit}".strip()
        said += f"; the smallest true effect that this n shows with 80 % power is {smallest}"
    if word == CANNOT_TELL and found.equivalence is not None and not found.selected:
        needed = tested.needed_n
        if needed is not None and needed <= found.n:
            return f"{said}; it had 80 % power to decide on the margin of {margin(declared)}"
        count = f"about {needed:,}" if needed is not None else "more than a million"
        said += f"; {count} seeds would decide on the margin of {margin(declared)}"
    return said


def _absent(found: Estimate) -> str:
    """Say which runs and cells the number is without."""
    said = ""
    for why, words in (
        ("missing", "not trained yet"), ("failed", "failed"), ("diverged", "diverged"),
        ("not measured", "without this metric"),
    ):  # fmt: skip
        count = sum(each.why == why for each in found.missing)
        if count:
            said += f"{', ' if said else ''}{count} run{'s' if count != 1 else ''} {words}"
    if not said:
        return ""
    left = ", ".join(place(cell) for cell in found.left_out)
    cells = f" Left out, no seed has both arms: {left}." if left and found.entered else ""
    return f" {'' if found.complete else 'Provisional: '}{said}.{cells}"
