"""A few of the checks under the sanitizers; make sanitize runs all of them."""

import pytest

from tools.simt import sanitize


@pytest.mark.parametrize("mode", sanitize.MODES)
def test_no_sanitizer_finds_fault(mode):
    done = sanitize.run(mode, step=15)
    assert done.returncode == 0 and "checks passed" in done.stdout, done.stdout + done.stderr
