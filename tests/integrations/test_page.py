"""docs/integration.md and the README say what runs: each block of Python, as it stands."""

import re
from pathlib import Path

import pytest
import torch
from integration_samples import TEXT, make, make_batch
from transformers import GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM
from transformers import TrainingArguments as Arguments

from moge_bench.integrations.router_forms import FORMS
from moge_bench.moe.insert import MoEFFN

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/integration.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
(README_BLOCK,) = [
    block
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    if "attach_group_sparsity" in block
]


def blocks_with(*words):
    return [block for block in BLOCKS if any(word in block for word in words)]


def names_of(model):
    batch = make_batch()
    rows = [{key: value[row] for key, value in batch.items()} for row in range(2)]
    return {"model": model, "batch": batch, "micro_batches": [batch, batch], "steps": 2,
            "data": rows, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}  # fmt: skip


def test_a_plain_loop_and_a_router_of_ones_own():
    loop, forms = blocks_with("micro_batches", "forms=")
    model = make("mixtral")
    gate = model.model.layers[0].mlp.gate
    before = gate.weight.clone()
    names = names_of(model)
    exec(loop, names)
    assert names["handle"].routers and not torch.equal(
        model.model.layers[0].mlp.gate.weight, before
    )
    exec(forms, names)
    assert len(names["handle"].routers) == 2


def test_the_trainer(tmp_path):
    (block,) = blocks_with("callbacks=")
    arguments = Arguments(tmp_path, max_steps=2, report_to="none", save_strategy="no",
                          logging_steps=1, disable_tqdm=True, use_cpu=True)  # fmt: skip
    names = names_of(make("mixtral")) | {"arguments": arguments}
    exec(block, names)
    logged = {key for entry in names["trainer"].state.log_history for key in entry}
    assert {"group_loss", "group_sigma", "group_dose"} <= logged
    said = set(re.findall(r"`(group_\w+)`", PAGE.partition("## The Trainer")[2]))
    assert {"group_loss", "group_sigma", "group_dose"} <= said


@pytest.mark.parametrize("num_experts", [8, 160])
def test_the_lines_of_the_readme_and_the_dose(num_experts, capsys):
    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(**TEXT, num_local_experts=num_experts)).train()
    names = names_of(model)
    plain = model(**names["batch"]).loss
    exec(README_BLOCK, names)
    assert names["loss"] > plain
    (block,) = blocks_with("dose.ratio")
    exec(block, names)
    assert names["dose"].ratio == pytest.approx(0.1, rel=1e-3)  # the README asked for it
    assert str(names["dose"].ratio) in capsys.readouterr().out


def test_layers_in_a_dense_model():
    insert, upcycle = blocks_with("insert_moe", "upcycle")
    config = GPT2Config(vocab_size=13, n_positions=8, n_embd=8, n_layer=2, n_head=2,
                        activation_function="relu")  # fmt: skip
    dense = GPT2LMHeadModel(config)
    ids = make_batch()["input_ids"]
    names = {"dense": dense, "batch": {"input_ids": ids, "labels": ids}, "steps": 2}
    exec(insert, names)
    exec(upcycle, names)
    assert [type(block.mlp) for block in dense.transformer.h] == [MoEFFN, MoEFFN]
    assert len(names["auxes"]) == 1


def test_every_family_that_the_page_names_is_known():
    rows = re.findall(
        r"^\| (?:softmax|sigmoid|as its|the router).*? \| (.*) \|$", PAGE, re.MULTILINE
    )
    assert len(rows) == 4
    known = " ".join(FORMS).lower()
    for name in (
        ", ".join(rows).replace(" and V", ", DeepSeekV").replace(" and 5", ", GLM5").split(", ")
    ):
        word = re.sub(r"[^a-z0-9]", "", name.lower().replace("ernie 4.5", "ernie"))
        assert word.removesuffix("linear") in known.replace("_", ""), name
