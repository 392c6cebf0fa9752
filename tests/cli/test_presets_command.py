from typer.testing import CliRunner

from moge_bench.cli import app
from moge_bench.presets import PRESETS


def test_presets_prints_size_reach_and_cost_of_each():
    result = CliRunner().invoke(app, ["presets"])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert [line.split(" ")[0] for line in lines[::4]] == list(PRESETS)
    # Width 64, 17 tokens. Patches: 49 * 64 + 64, a class token of 64, positions 17 * 64.
    embeddings = 49 * 64 + 64 + 64 + 17 * 64
    # A layer: two norms of 2 * 64, four projections of 64 * 64 + 64; then an FFN or an MoE.
    attention = 2 * 128 + 4 * (64 * 64 + 64)
    ffn = 64 * 128 + 128 + 128 * 64 + 64  # also one expert of 16
    gate = 64 * 16
    ends = 128 + 64 * 10 + 10  # the last norm, 10 classes
    active = embeddings + 4 * attention + 2 * ffn + 2 * (gate + ffn) + ends
    total = active + 2 * 15 * ffn
    assert (total, active) == (638_346, 141_066)
    # FLOPs, by hand in tests/models/test_cost.py: (4,854,016 + 2 * 17 * 2,048) / 17 = 289,626.
    assert lines[:4] == [
        f"tiny-vit (moge): {PRESETS['tiny-vit'].about}",
        "    size:    638,346 parameters, 141,066 active, 289,626 FLOPs a token forward",
        f"    reaches: {PRESETS['tiny-vit'].reaches}",
        f"    costs:   {PRESETS['tiny-vit'].cost}",
    ]
    official = lines[lines.index(next(line for line in lines if line.startswith("smoe-s "))) + 1]
    assert official.startswith("    size:    at most ")  # its words are counted in the data
