"""The gate of the cost report on synthetic rows: each bound and each column broken once."""

from dataclasses import replace
from pathlib import Path

import pytest

from tools.gpu_check import cost as table
from tools.gpu_check.cost import Cost
from tools.gpu_check.verdict import GUARDED, broken_bounds, is_close, not_launched, regressions

GOOD = Cost(
    kernel="route_forward<2, float>", architecture="sm_90", launch="T=8192 N=64 k=2", nvcc="13.0",
    threads=256, registers=40, spill_bytes=0, stack_bytes=16, static_shared_bytes=64,
    dynamic_shared_bytes=4096, occupancy=0.75, limited_by="registers", sass_instructions=812,
    ptx_instructions_per_token=301.25, sectors_per_token=9.5, bytes_per_token=304.0,
    min_bytes_per_token=288.0, conflict_degree=1.0, floor_ns_per_token=0.086,
    issue_ns_per_token=0.2882,
)  # fmt: skip


def test_a_good_row_passes():
    assert broken_bounds([GOOD]) == []
    assert regressions([GOOD], [GOOD]) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spill_bytes": 4}, "spill_bytes is 4, must be at most 0"),
        ({"occupancy": 0.375}, "occupancy is 0.375, must be at least 0.5"),
        # 288 x 1.1 = 316.8; 317 / 288 = 1.1007.
        ({"bytes_per_token": 317.0}, "bytes_ratio is 1.1007, must be at most 1.1"),
        ({"conflict_degree": 1.2}, "conflict_degree is 1.2, must be at most 1.1"),
    ],
)
def test_each_bound_broken_once_names_row_column_value_and_bound(change, message):
    found = broken_bounds([GOOD, replace(GOOD, architecture="sm_80", **change)])
    assert [str(v) for v in found] == [f"route_forward<2, float> sm_80 T=8192 N=64 k=2: {message}"]


@pytest.mark.parametrize(
    "change",
    [{"occupancy": 0.5}, {"bytes_per_token": 316.8}, {"conflict_degree": 1.1},
     {"min_bytes_per_token": None, "bytes_per_token": 1e6}],
)  # fmt: skip
def test_a_bound_itself_is_kept_and_no_minimum_means_no_bound(change):
    assert broken_bounds([replace(GOOD, **change)]) == []


def test_the_router_of_64_experts_is_close_to_memory():
    launch = "T=65536 N=64 k=2 bfloat16"
    far = replace(
        GOOD, kernel="route_forward_subwarp_kernel<SubMap<8, 8, 3, false> >", launch=launch,
        registers=64, spill_bytes=4, floor_ns_per_token=0.05, issue_ns_per_token=0.066,
    )  # fmt: skip
    found = [(v.column, v.value, v.bound) for v in broken_bounds([far])]
    assert found == [("issue_ratio", 1.32, "at most 1.3"), ("spill_bytes", 4, "at most 0")]
    assert broken_bounds([replace(far, architecture="sm_100")]) == []
    for change in (
        {"launch": launch.replace("bfloat16", "float32")},
        {"kernel": far.kernel.replace("forward", "backward")},
    ):
        assert len(broken_bounds([replace(far, architecture="sm_100", **change)])) == 2
    assert broken_bounds([replace(far, launch=launch.replace("bfloat16", "float16"))]) == []
    assert broken_bounds([replace(far, spill_bytes=0, issue_ns_per_token=0.065)]) == []


def test_the_committed_table_keeps_every_bound():
    committed = Path(__file__).resolve().parents[3] / "results/perf/gpu_cost.csv"
    rows = table.read_csv(committed)
    assert broken_bounds(rows) == []
    # Two numbers of tokens; three architectures, two dtypes and two directions, but one.
    assert len([row for row in rows if is_close(row)]) == 2 * (3 * 2 * 2 - 1)


@pytest.mark.parametrize("column", GUARDED)
def test_every_guarded_column_regresses_when_worse_and_only_then(column):
    value = getattr(GOOD, column)
    step = 1 if isinstance(value, int) else 0.001
    worse, better = (
        (value + step, value - step) if GUARDED[column] else (value - step, value + step)
    )
    found = regressions([replace(GOOD, **{column: worse})], [GOOD])
    assert [v.column for v in found] == [column]
    assert str(found[0]).endswith("(committed)")
    assert regressions([replace(GOOD, **{column: better})], [GOOD]) == []


def test_only_kernels_indexed_by_data_may_have_conflicts():
    conflicts = {"conflict_degree": 1.9, "min_bytes_per_token": None}
    assert broken_bounds([replace(GOOD, kernel="count_choices_kernel", **conflicts)]) == []
    spills = replace(GOOD, kernel="count_choices_kernel", spill_bytes=8, **conflicts)
    assert [v.column for v in broken_bounds([spills])] == ["spill_bytes"]


def test_kernels_of_the_wider_routing_may_fill_a_quarter():
    wide = replace(GOOD, kernel="route_wide_forward_kernel<32, 4, float>", occupancy=0.25)
    assert broken_bounds([wide]) == []
    found = broken_bounds([replace(wide, occupancy=0.125), replace(GOOD, occupancy=0.25)])
    assert [v.bound for v in found] == ["at least 0.25", "at least 0.5"]


def test_only_a_kernel_that_uses_all_registers_may_spill_three_instructions_in_two_hundred():
    full = replace(GOOD, registers=64)
    assert broken_bounds([replace(full, spill_bytes=48)]) == []  # 4 bytes x 812 x 3 / 200 = 48.72
    found = broken_bounds([replace(full, spill_bytes=52), replace(GOOD, spill_bytes=4)])
    assert [v.bound for v in found] == ["at most 48", "at most 0"]


def test_rows_that_vanish_or_appear_are_told():
    other = replace(GOOD, architecture="sm_100")
    assert [str(v) for v in regressions([GOOD], [GOOD, other])] == [
        "route_forward<2, float> sm_100 T=8192 N=64 k=2: row is absent, "
        "must be there: the committed table has it"
    ]
    assert [v.value for v in regressions([GOOD, other], [GOOD])] == ["added"]


def test_rows_of_another_compiler_are_not_compared():
    worse = replace(GOOD, registers=48)
    assert regressions([worse], [GOOD])
    assert regressions([replace(worse, nvcc="13.1")], [GOOD]) == []


def test_a_kernel_that_no_case_launches_is_told():
    found = not_launched(["route_forward<2, float>", "route_forward<4, float>"], [GOOD])
    assert [str(v) for v in found] == [
        "route_forward<4, float>: row is absent, must be there: no case launches this kernel"
    ]


def test_csv_round_trip_keeps_the_verdicts(tmp_path):
    path = tmp_path / "gpu_cost.csv"
    tail = replace(GOOD, kernel="sum_up", min_bytes_per_token=None, floor_ns_per_token=None)
    odd = replace(GOOD, kernel="odd", ptx_instructions_per_token=100 / 3)
    path.write_text(table.to_csv([tail, odd, GOOD]))
    read = table.read_csv(path)
    assert [row.kernel for row in read] == ["odd", "route_forward<2, float>", "sum_up"]
    assert read[1] == GOOD and read[2] == tail
    assert regressions([tail, odd, GOOD], read) == []
    assert path.read_text() == table.to_csv(read)


def test_a_table_of_other_columns_is_refused(tmp_path):
    path = tmp_path / "gpu_cost.csv"
    path.write_text("kernel,registers\nroute,40\n")
    with pytest.raises(ValueError, match="got kernel, registers; rewrite it with --update"):
        table.read_csv(path)
