"""What ordinary tests show already: the sentence on the page, and the tests by node id."""

from __future__ import annotations

SHOWN = {
    "A full disk (a tmpfs of 256 KiB; only root can mount one) leaves what was there whole, no "
    "temporary file, and names the file; the other runs of a study go on": (
        "tests/runs/test_safe_files.py::test_a_full_disk_keeps_what_was_there_and_names_the_file",
        "tests/runs/test_record.py::test_full_disk_leaves_the_old_record",
        "tests/runs/test_record.py::test_a_refusal_of_the_kernel_half_way_leaves_the_old_file",
        "tests/runs/test_execute.py::test_full_disk_is_reported_and_the_others_run",
    ),
    "A folder that cannot be written is said in one sentence, before anything is trained": (
        "tests/cli/test_bad_input.py::test_a_read_only_folder_of_a_study_is_said",
        "tests/cli/test_bad_input.py::test_a_results_folder_below_a_file_is_said_before_anything_is_trained",
    ),
    "Two studies that write at once leave whole files, lose nothing and leave no litter": (
        "tests/runs/test_safe_files.py::test_two_that_write_the_same_files_at_once_leave_whole_ones",
        "tests/runs/test_safe_files.py::test_two_writers_with_one_process_id_do_not_meet",
        "tests/runs/test_speed.py::test_passes_added_at_once_are_all_kept",
        "tests/study/test_manifest.py::test_declarations_made_at_once_are_all_kept",
    ),
    "With a clock that goes backwards no run takes negative time, and what was declared keeps its "
    "order": ("tests/runs/test_safe_files.py::test_a_clock_that_goes_backwards",),
    "YAML and checkpoints load without executing code": (
        "tests/runs/test_safe_files.py::test_yaml_executes_nothing",
        "tests/runs/test_safe_files.py::test_a_checkpoint_executes_nothing",
    ),
    "Names in manifests, records and grids cannot leave the results folder": (
        "tests/runs/test_safe_files.py::test_a_manifest_names_no_file_outside_its_folder",
        "tests/runs/test_safe_files.py::test_no_study_or_record_has_a_path_for_a_name",
    ),
    "A run killed at a step that a test chooses goes on to the same record; none outlives a "
    "killed command": (
        "tests/training/test_resume.py::test_killed_twice_and_resumed",
        "tests/runs/test_processes.py::test_a_run_does_not_outlive_a_killed_command",
        "tests/runs/test_execute.py::test_resume_after_a_kill_then_nothing_is_left_to_do",
    ),
}
