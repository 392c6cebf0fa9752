"""A few of the cases under the sanitizers; make sanitize runs all of them."""

import pytest
import simt_sanitize


@pytest.mark.parametrize("mode", simt_sanitize.MODES)
def test_no_sanitizer_finds_fault(mode):
    done = simt_sanitize.run(mode, step=15)
    assert done.returncode == 0 and "cases passed" in done.stdout, done.stdout + done.stderr
