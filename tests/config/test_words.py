"""Words that YAML 1.1 reads as booleans, numbers or dates stay words where a string is wanted."""

import pytest

from moge_bench.config.words import read_value, string_settings
from moge_bench.presets import resolve


def test_every_string_setting_is_known_and_no_other():
    found = string_settings()
    assert {"preset", "method", "data.name", "training.precision", "moe.balance",
            "moe.group.border", "model.activation", "moe.residual.kind"} <= found  # fmt: skip
    assert not found & {"seed", "moe.noise", "moe.top_k", "training.clip_norm", "moe.blocks"}


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("training.precision", "no", "no"),
        ("training.precision", "'no'", "no"),
        ("data.name", "1984", "1984"),
        ("data.name", "2024-01-01", "2024-01-01"),
        ("data.name", "C: a #1 [b].txt", "C: a #1 [b].txt"),
        ("data.name", "~/no", "~/no"),
        ("data.name", '"null"', "null"),
        ("data.name", "null", None),
        ("moe.balance", "none", "none"),
        ("moe.noise", "no", False),
        ("training.steps", "7", 7),
        ("moe.blocks", "[1, 2]", [1, 2]),
        ("training.clip_norm", "null", None),
        ("training.learning_rate", "1e-3", "1e-3"),  # pydantic makes the number
        ("no.such.setting", "no", False),
    ],
)
def test_value_on_the_command_line(path, text, value):
    assert read_value(path, text) == value
    assert type(read_value(path, text)) is type(value)


def test_the_default_precision_can_be_written():
    value = read_value("training.precision", "no")
    assert resolve("tiny-vit", overrides={"training.precision": value}) == resolve("tiny-vit")


def test_what_is_not_yaml_is_named():
    with pytest.raises(ValueError, match=r"moe\.blocks: the value is not YAML, got '\[1'"):
        read_value("moe.blocks", "[1")
