"""The code that scripts/prove_gate.py plants; the proofs themselves take half an hour."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import prove_gate


@pytest.mark.parametrize(("percent", "code"), [(1, "* 1 / 100"), (10, "* 10 / 100")])
def test_the_code_repeats_what_it_is_asked_to(percent, code):
    assert prove_gate.repeat(percent).count(f"a.num_tokens {code};") == 2  # forward and backward
    assert "PERCENT" not in prove_gate.repeat(percent)
