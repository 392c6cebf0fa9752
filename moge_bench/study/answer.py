"""What a study says: its declared contrasts, and when they were declared."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from moge_bench.runs.record import Record
from moge_bench.study.estimate import estimate
from moge_bench.study.frame import Results
from moge_bench.study.verdicts import Tested, tested


@dataclass(frozen=True)
class Answer:
    """The primary contrast, None of a study that declares none, and the secondary ones."""

    results: Results
    primary: Tested | None
    secondary: tuple[Tested, ...]

    @property
    def declared(self) -> str | None:
        """When the study as it stands was declared, in UTC; None where that is not known."""
        last = self.results.declarations[-1:]
        same = last and last[0].digest == self.results.study.digest
        return last[0].declared if same else None

    @property
    def older(self) -> int:
        """How many of the primary contrast's records were started before it was declared."""
        return self.older_of(self.primary.found.records) if self.primary is not None else 0

    def older_of(self, records: Iterable[Record]) -> int:
        """Return how many of ``records`` were started before the study was declared."""
        when = self.declared
        return 0 if when is None else sum(record.started < when for record in records)

    @property
    def secondary_records(self) -> list[Record]:
        """The records that secondary contrasts are made of and the primary one is not."""
        known = {r.run_id for r in self.primary.found.records} if self.primary else set()
        found = {r.run_id: r for each in self.secondary for r in each.found.records}
        return [record for run_id, record in found.items() if run_id not in known]


def make_answer(results: Results) -> Answer:
    """Compute every declared contrast of a study from the records that there are."""
    study = results.study
    primary = [estimate(results, study.primary)] if study.primary is not None else []
    secondary = [estimate(results, declared) for declared in study.secondary]
    return Answer(results, next(iter(tested(primary)), None), tested(secondary))


def in_order(answers: Iterable[Answer]) -> list[Answer]:
    """Return ``answers`` as they are read: known, provisional, without a run, nothing declared.

    Each kind keeps its order.
    """

    def kind(answer: Answer) -> int:
        if answer.primary is None:
            return 3
        found = answer.primary.found
        return 2 if found.n == 0 else 0 if found.complete else 1

    return sorted(answers, key=kind)
