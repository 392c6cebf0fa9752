from typer.testing import CliRunner

from moge_bench.cli import app
from moge_bench.presets import PRESETS


def test_presets_prints_size_reach_and_cost_of_each():
    result = CliRunner().invoke(app, ["presets"])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert [line.split(" ")[0] for line in lines[::4]] == list(PRESETS)
    # Width 64, 17 tokens. 3 x 3 convolutions of 1 to 32, 64 and 64 channels, each with scale and
    # shift of its norm, and a 1 x 1; a class token of 64, positions 17 * 64.
    stem = 9 * (32 + 32 * 64 + 64 * 64) + 2 * (32 + 64 + 64) + 64 * 64 + 64
    embeddings = stem + 64 + 17 * 64
    # A layer: two norms of 2 * 64, four projections of 64 * 64 + 64; then an FFN or an MoE.
    attention = 2 * 128 + 4 * (64 * 64 + 64)
    ffn = 64 * 128 + 128 + 128 * 64 + 64  # also one expert of 64
    gate = 64 * 64
    ends = 128 + 64 * 10 + 10  # the last norm, 10 classes
    active = embeddings + 4 * attention + 2 * ffn + 2 * (gate + ffn) + ends
    total = active + 2 * 63 * ffn
    assert (total, active) == (2_292_650, 204_074)
    # FLOPs, by hand in tests/models/test_cost.py: (7,983,616 + 2 * 17 * 8,192) / 17 = 486,008.
    first = next(i for i, line in enumerate(lines) if line.startswith("tiny-vit "))
    assert lines[first : first + 4] == [
        f"tiny-vit (moge): {PRESETS['tiny-vit'].about}",
        "    size:    2,292,650 parameters, 204,074 active, 486,008 FLOPs a token forward",
        f"    reaches: {PRESETS['tiny-vit'].reaches}",
        f"    costs:   {PRESETS['tiny-vit'].cost}",
    ]
    official = lines[lines.index(next(line for line in lines if line.startswith("smoe-s "))) + 1]
    assert official.startswith("    size:    at most ")  # its words are counted in the data


def test_presets_can_be_asked_for_by_a_part_of_the_name_or_a_glob():
    def named(*which):
        result = CliRunner().invoke(app, ["presets", *which])
        assert result.exit_code == 0, result.output
        return [line.split(" ")[0] for line in result.output.splitlines()[::4]]

    assert named("tiny-vit") == ["tiny-vit"]
    assert named("swinv2-moe-t") == named("swinv2-moe-t*") != []
    result = CliRunner().invoke(app, ["presets", "tiny-vot"])
    assert result.exit_code == 2
    assert result.output == (
        "moge-bench: no preset is called 'tiny-vot'; the nearest is 'tiny-vit'\n"
    )
