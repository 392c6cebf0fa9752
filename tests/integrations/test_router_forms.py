"""The list of routers against the sources of the installed transformers."""

import ast
import importlib.metadata
import re
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from moge_bench.integrations.router_forms import (
    FORMS,
    LEFT_OUT,
    RouterForm,
    check_kind,
    count_experts,
    score_function_of,
    scores_of,
)

MODELS = Path(transformers.__file__).parent / "models"
RECORDER = re.compile(r"OutputRecorder\((\w+)(?:, layer_name=\S+)?, index=(\d)")
# Recorded in place of the router inside, which is listed.
BLOCKS = {
    "Ernie4_5_VLMoeMoeBlock": "Ernie4_5_VLMoeMoeTopKRouter",
    "JetMoeAttention": "JetMoeTopKGating",
}


def recorded():
    """Return {class: index} of every router that a model of transformers records."""
    found = {}
    for path in MODELS.glob("*/modeling_*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if '"router_logits": ' in line:
                found.update({name: int(index) for name, index in RECORDER.findall(line)})
    return found


@pytest.fixture(scope="module")
def sources():
    """Return {class: source of its forward} of every module with a router's name."""
    found = {}
    for path in MODELS.glob("*/modeling_*.py"):
        text = path.read_text(encoding="utf-8")
        if not any(f"class {name}(" in text for name in FORMS):
            continue
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef) and node.name in FORMS:
                forwards = [m for m in node.body if getattr(m, "name", "") == "forward"]
                found[node.name] = ast.unparse(forwards[0])
    return found


def test_every_router_that_transformers_records_is_listed():
    routers = {BLOCKS.get(name, name): index for name, index in recorded().items()
               if name not in BLOCKS}  # fmt: skip
    assert len(routers) >= 50, importlib.metadata.version("transformers")
    assert routers.keys() - FORMS.keys() - LEFT_OUT.keys() == set()
    wrong = {n: i for n, i in routers.items() if n in FORMS and FORMS[n].index != i}
    assert wrong == {}


def test_the_function_is_the_one_in_the_source(sources):
    assert sources.keys() == FORMS.keys()
    # Their weights are made by a function of the module's; test_families.py and its like see it.
    elsewhere = {"DbrxRouter", "NllbMoeTop2Router", "PhimoeTopKRouter"}
    for name, source in sources.items():
        words = {word for word in ("softmax", "sigmoid") if word in source}
        function = FORMS[name].score_function
        if function == "scores":
            assert re.search(r"return \(router_probabilities,", source), name
        elif function.startswith("."):
            assert f"self{function}" in source, name
        elif name not in elsewhere:
            assert words == {function}, name


def test_scores_by_hand():
    logits = torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.bfloat16)
    # e^0 = 1, e^1 = 2.71828, e^2 = 7.38906: sum 11.10734
    softmax = torch.tensor([[0.0900306, 0.2447285, 0.6652410]])
    sigmoid = torch.tensor([[0.5, 0.7310586, 0.8807971]])
    torch.testing.assert_close(scores_of("softmax", logits), softmax)
    torch.testing.assert_close(scores_of("sigmoid", logits.reshape(1, 1, 3)), sigmoid)
    assert torch.equal(scores_of(torch.relu, logits), logits.float())
    assert scores_of("scores", logits.double()).dtype == torch.float64


class Named(nn.Linear):
    which = "sigmoid"
    function = staticmethod(torch.exp)
    wrong = "tanh"


def test_a_function_of_the_routers_own():
    router = Named(2, 3)
    assert score_function_of(RouterForm(".which"), router) == "sigmoid"
    assert score_function_of(RouterForm(".function"), router) is torch.exp
    with pytest.raises(ValueError, match=r"Named\.wrong must be one of .*got 'tanh'"):
        score_function_of(RouterForm(".wrong"), router)
    with pytest.raises(ValueError, match=r"score_function must be one of .*got 'tanh'"):
        RouterForm("tanh")


def test_the_number_of_experts():
    router = Named(2, 3)
    assert count_experts("gate", router) == 3
    router.num_experts = 5
    assert count_experts("gate", router) == 5
    with pytest.raises(ValueError, match=r"the router 'gate' \(Sequential\).*got \[3, 4\] rows"):
        count_experts("gate", nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 3)))


def test_logits_and_scores_are_told_apart():
    logits = torch.tensor([[0.5, -0.25, 0.75], [0.0, 0.5, 0.5]])
    check_kind("gate", RouterForm("softmax"), logits)
    check_kind("gate", RouterForm("scores"), logits.sigmoid())
    check_kind("gate", RouterForm("sigmoid"), torch.zeros(0, 3))
    with pytest.raises(ValueError, match=r"must report scores.*negative numbers"):
        check_kind("gate", RouterForm("scores"), logits)
    for function in ("softmax", "sigmoid"):
        with pytest.raises(ValueError, match=r"must report logits.*sum to 1"):
            check_kind("gate", RouterForm(function), logits.softmax(-1))
