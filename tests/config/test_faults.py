"""pydantic's findings in the words of this package: the path as it is written, got, wanted."""

import re

import pytest
from pydantic import ValidationError

from moge_bench.config import RunConfig, faults
from moge_bench.presets import resolve

VALUES = resolve("tiny-vit", "moge").model_dump(mode="json")


def said(section, **changes):
    values = {**VALUES, section: {**VALUES[section], **changes}} if section else VALUES | changes
    with pytest.raises(ValidationError) as caught:
        RunConfig.model_validate(values)
    return faults(caught.value, RunConfig)


@pytest.mark.parametrize(
    ("section", "changes", "sentence"),
    [
        # The tag of a union (data.images.flip) is nothing that anybody writes.
        ("data", {"flip": "maybe"}, "data.flip must be true or false, got 'maybe'"),
        ("data", {"flp": 1}, "no field is called 'data.flp'; the nearest is 'flip'"),
        ("data", {"mean": 0.5}, "data.mean must be a list (of a pixel in 0..1, per channel; None: "
         "as of the data set), got 0.5"),
        ("data", {"kind": "sound"}, "data.kind must be 'images', 'text', got 'sound'"),
        ("model", {"depth": 2.5}, "model.depth must be a whole number, got 2.5"),
        ("model", {"hidden_size": "wide"}, "model.hidden_size must be a whole number, got 'wide'"),
        ("training", {"beta1": 1}, "training.beta1 must be below 1, got 1"),
        ("training", {"learning_rate": "fast"}, "training.learning_rate must be a number, got "
         "'fast'"),
        ("moe", {"blocks": [2, "x"]}, "moe.blocks.1 must be a whole number, got 'x'"),
        ("moe", {"blocks": [2, 2]}, "moe.blocks: every block may be named once, got [2, 2]"),
        ("moe", {"group": 3}, "moe.group must be a mapping, got 3"),
        ("moe", {"group": {"size": 3}}, "moe.group.weight is missing (lambda)"),
        ("", {"method": "mog"}, "method: no method is called 'mog'; the nearest is 'moge'"),
    ],
)  # fmt: skip
def test_each_kind(section, changes, sentence):
    assert said(section, **changes) == [sentence]


def test_every_fault_has_a_sentence_and_none_is_pydantics():
    found = said("training", steps="x", batch_size=0, precision="fp8", clip_norm=[1])
    assert len(found) == 4
    assert not [s for s in found if re.search("[Ii]nput|valid|parse", s)]
