from concurrent.futures import ThreadPoolExecutor

import pytest
from record_samples import make_pass, make_speed

from moge_bench.runs.speed import SpeedStore


def test_a_pass_takes_the_place_of_one_with_its_key(tmp_path):
    speeds = SpeedStore(tmp_path)
    speeds.add("s", make_pass({"a": make_speed(1.0)}, key="machine 1"))
    speeds.add("s", make_pass({"a": make_speed(2.0)}, key="machine 2"))
    speeds.add("s", make_pass({"a": make_speed(3.0)}, key="machine 1"))
    found = [(p.key, p.arms["a"].tokens_per_second.median) for p in speeds.passes("s")]
    assert found == [("machine 2", 2.0), ("machine 1", 3.0)]
    assert speeds.passes("other") == ()


def test_the_latest_pass_is_of_those_that_timed_most_of_the_arms(tmp_path):
    speeds = SpeedStore(tmp_path)
    assert speeds.latest("s", ["a", "b"]) is None
    speeds.add("s", make_pass({"a": make_speed(), "b": make_speed()}, key="both"))
    speeds.add("s", make_pass({"a": make_speed()}, key="one"))
    speeds.add("s", make_pass({"c": make_speed()}, key="none"))
    assert speeds.latest("s", ["a", "b"]).key == "both"
    assert speeds.latest("s", ["a"]).key == "one"
    assert speeds.latest("s", ["d"]) is None


def test_a_damaged_file_is_named_with_what_to_do(tmp_path):
    speeds = SpeedStore(tmp_path)
    path = speeds.add("s", make_pass({"a": make_speed()}))
    path.write_text(path.read_text()[:50])
    with pytest.raises(ValueError, match=r"is not a speed file: .*delete it to time the study aga"):
        speeds.passes("s")


def test_passes_added_at_once_are_all_kept(tmp_path):
    """Locks are of open files: threads are kept apart by them as processes are."""
    added = [make_pass({"a": make_speed()}, key=f"machine {number}") for number in range(16)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda measured: SpeedStore(tmp_path).add("s", measured), added))
    assert {p.key for p in SpeedStore(tmp_path).passes("s")} == {p.key for p in added}
