"""What is attached where: masks, evaluation, copies, and what is refused."""

import copy
import io
import re

import pytest
import torch
from integration_samples import make, make_batch, mixtral
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from moge_bench import SigmaSchedule, group_norm
from moge_bench.integrations import transformers as integration
from moge_bench.integrations.router_forms import RouterForm
from moge_bench.integrations.transformers import GroupSparsity, attach_group_sparsity


def attach(model, **settings):
    return attach_group_sparsity(model, **{"group_weight": 1.0, **settings})


def test_padding_does_not_count_whatever_it_holds():
    model, batch = make("mixtral"), make_batch(padding=(0, 3))
    handle = attach(model)
    losses = []
    for word in (4, 9):
        ids = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, word)
        model(**{**batch, "input_ids": ids})
        losses.append(handle.group_loss)
    torch.testing.assert_close(*losses)
    model(**{**batch, "attention_mask": None})
    assert abs(handle.group_loss - losses[0]) > 1e-3


def test_settings_reach_the_loss():
    model, batch = make("mixtral"), make_batch(padding=(0, 0))
    settings = {"group_size": 3, "sigma": 0.7, "map_shape": (4, 2), "border": "torus",
                "unit_energy": True, "reduction": "official_language"}  # fmt: skip
    handle = attach(model, **settings)
    seen = []
    model.model.layers[0].mlp.gate.register_forward_hook(lambda *a: seen.append(a[2][0]))
    model(**batch)
    by_hand = group_norm(seen[0].softmax(-1).detach(), **settings)
    torch.testing.assert_close(handle.losses["model.layers.0.mlp.gate"], by_hand)


def test_use_mask_false_counts_every_token():
    model, batch = make("mixtral"), make_batch(padding=(0, 3))
    handle = attach(model, use_mask=False)
    seen = []
    model.model.layers[0].mlp.gate.register_forward_hook(lambda *a: seen.append(a[2][0]))
    model(**batch)
    by_hand = group_norm(seen[0].softmax(-1).detach(), group_size=2)
    torch.testing.assert_close(handle.losses["model.layers.0.mlp.gate"], by_hand)


@pytest.mark.parametrize("positional", [False, True])
def test_a_positional_mask_and_a_tuple_output(positional):
    model, batch = make("mixtral"), make_batch(padding=(0, 3))
    handle = attach(model)
    if positional:
        rest = (None, None, None, batch["labels"])  # position_ids, past_key_values, inputs_embeds
        output = model(batch["input_ids"], batch["attention_mask"], *rest, return_dict=False)
    else:
        output = model(**batch, return_dict=False)
    expected = make("mixtral")(**batch).loss + handle.group_loss
    torch.testing.assert_close(output[0], expected)


def test_a_decoder_without_a_mask_counts_the_tokens_with_a_label():
    model, batch = make("switch"), make_batch(padding=(0, 3))
    handle = attach(model)
    name = handle.routers[1]
    assert name.startswith("decoder.")
    losses = []
    for mask in (None, batch["labels"] != -100):
        model(**batch, decoder_attention_mask=mask)
        losses.append(handle.losses[name])
    torch.testing.assert_close(*losses)
    model(**batch, decoder_attention_mask=torch.ones(2, 8))
    assert handle.losses[name] != losses[0]


def test_a_mask_that_covers_a_cache_too_is_cut_to_the_tokens():
    model, batch = make("mixtral"), make_batch(padding=(0, 0))
    handle = attach(model, in_eval=True)
    model.eval()
    with torch.no_grad():
        first = model(input_ids=batch["input_ids"][:, :5], use_cache=True)
        model(
            input_ids=batch["input_ids"][:, 5:], past_key_values=first.past_key_values,
            attention_mask=batch["attention_mask"], labels=batch["labels"][:, 5:],
        )  # fmt: skip
    assert handle.group_loss > 0


def test_a_mask_of_another_length_is_refused():
    gate = attach(make("mixtral")).hooks[-1]
    with pytest.raises(ValueError, match=r"attention_mask must cover the 16 tokens .*got \(2, 7\)"):
        gate._flat(torch.ones(2, 7), 16)


def test_the_mask_of_a_wrapper_and_images():
    model, batch = make("llava"), make_batch(padding=(0, 3))
    batch["input_ids"][:, :4] = 3  # the image of 8 x 8 pixels is 2 x 2 patches
    handle = attach(model)
    output = model(**batch, pixel_values=torch.randn(2, 3, 8, 8))
    output.loss.backward()
    assert handle.routers == [f"model.language_model.layers.{i}.mlp.gate" for i in range(2)]
    assert model.model.language_model.layers[0].mlp.gate.weight.grad.norm() > 0


def test_evaluation_gains_nothing_unless_asked():
    model, batch = make("mixtral").eval(), make_batch()
    plain = model(**batch).loss
    handle = attach(model)
    assert torch.equal(model(**batch).loss, plain) and handle.losses == {}
    handle.remove()
    handle = attach(model, in_eval=True)
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).loss, plain + handle.group_loss)
        assert model(batch["input_ids"]).loss is None
    assert model(batch["input_ids"]).loss is None


def test_a_training_output_without_a_loss_is_an_error_but_for_generation():
    model, batch = make("mixtral"), make_batch()
    attach(model)
    with pytest.raises(
        ValueError, match=r"must have a loss to add to, got MoeCausalLMOutput.*term"
    ):
        model(batch["input_ids"])
    with torch.no_grad():
        model.generate(batch["input_ids"], max_new_tokens=2)


def test_the_term_is_the_callers_where_it_is_not_added():
    model, batch = make("mixtral"), make_batch()
    plain = model(**batch).loss
    handle = attach(model, group_weight=3.0, add_to_loss=False)
    assert torch.equal(model(**batch).loss, plain)
    model(batch["input_ids"], batch["attention_mask"])
    torch.testing.assert_close(handle.term.detach(), 3 * handle.group_loss)
    # Of 16 - 3 labels 11 are targets, of 22 in all micro-batches: half the term.
    torch.testing.assert_close(handle.term_for(batch["labels"], 22), handle.term / 2)
    with pytest.raises(ValueError, match="there is no term"):
        attach(make("mixtral")).term_for(batch["labels"], 22)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_has_an_attachment_of_its_own(how):
    model, batch = make("mixtral"), make_batch()
    handle = attach(model)
    loss = model(**batch).loss
    if how == "deepcopy":
        copied = copy.deepcopy(model)
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        copied = torch.load(file, weights_only=False)
    own = GroupSparsity.of(copied)
    assert own is not handle and own.losses == {}
    own.set_group_weight(0.0)
    assert torch.equal(model(**batch).loss, loss) and copied(**batch).loss < loss
    own.remove()
    assert torch.equal(model(**batch).loss, loss) and GroupSparsity.of(model) is handle
    with pytest.raises(ValueError, match="must have the group loss attached"):
        GroupSparsity.of(copied)


@pytest.mark.parametrize("again", ["the model", "the model inside", "a copy"])
def test_a_second_attachment_is_refused(again):
    model = make("mixtral")
    attach(model)
    target = {"the model": model, "the model inside": model.model, "a copy": copy.deepcopy(model)}
    with pytest.raises(ValueError, match=r"has the group loss already.*handle\.remove\(\)"):
        attach(target[again])


def test_a_forward_that_fails_leaves_nothing():
    model, batch = make("mixtral"), make_batch()
    handle = attach(model)
    loss = model(**batch).loss
    fails = model.lm_head.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(**batch)
    fails.remove()
    assert torch.equal(model(**batch).loss, loss) and len(handle.losses) == 2


def test_sigma_follows_the_schedule():
    schedule = SigmaSchedule(10.0, 1.0, 0.2, total_steps=100)
    model, batch = make("mixtral"), make_batch()
    handle = attach(model, sigma=schedule)
    assert handle.sigma == 10.0
    losses = []
    for step in (0, 100):
        # 10 -> 1, docs/method.md "Sigma schedule"
        assert handle.set_step(step) == handle.sigma == {0: 10.0, 100: 1.0}[step]
        model(**batch)
        losses.append(handle.group_loss)
    assert losses[0] != losses[1]
    handle.set_sigma(None)
    assert handle.sigma is None
    with pytest.raises(ValueError, match=r"set_step needs .*SigmaSchedule.*got sigma=2\.0"):
        attach(make("mixtral"), sigma=2.0).set_step(1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"group_weight": -1.0}, "group_weight must be finite and at least 0, got -1.0"),
        ({"group_weight": "1"}, "group_weight must be a number, got '1'"),
        ({"group_size": 3}, "group_size"),  # 3 x 3 does not fit 2 x 4
        ({"map_shape": (3, 3)}, r"map_shape.*\(3, 3\)"),
        ({"sigma": -1.0}, "sigma must be positive"),
        ({"border": "wrap"}, "border"),
        ({"forms": {"Nothing": RouterForm("softmax")}}, r"forms names \['Nothing'\]"),
        ({"forms": {"MixtralTopKRouter": RouterForm("softmax", 1)}}, r"must report \(\.\.\., 8\)"),
        ({"forms": {"mlp.gate": RouterForm("scores")}}, "reports negative numbers"),
    ],
)
def test_a_wrong_setting_is_refused(settings, message):
    model, batch = make("mixtral"), make_batch()
    with pytest.raises((ValueError, TypeError), match=message):
        attach(model, **settings)
        model(**batch)


def test_scores_under_the_name_of_logits_are_told_apart():
    """transformers before 5.6 returned the softmax from Mixtral's router as router_logits."""
    model, batch = make("mixtral"), make_batch()
    for layer in model.model.layers:
        layer.mlp.gate.register_forward_hook(lambda _, __, out: (out[0].softmax(-1), *out[1:]))
    handle = attach(model)
    with pytest.raises(
        ValueError, match=r"must report logits.*pass forms=.*RouterForm\('scores'\)"
    ):
        model(**batch)
    handle.remove()
    attach(model, forms={"MixtralTopKRouter": RouterForm("scores")})
    attach(usual := make("mixtral"))
    torch.testing.assert_close(model(**batch).loss, usual(**batch).loss)


def test_a_model_without_known_routers_names_what_looks_like_one():
    dense = LlamaForCausalLM(LlamaConfig(vocab_size=11, hidden_size=8, intermediate_size=8,
                                         num_hidden_layers=1, num_attention_heads=2))  # fmt: skip
    with pytest.raises(ValueError, match=re.escape("Linear at 'model.layers.0.mlp.gate_proj'")):
        attach(dense)
    with pytest.raises(ValueError, match=r"Known: moge_bench.integrations.router_forms.FORMS"):
        attach(nn.Linear(2, 2))


class Gate(nn.Linear):
    """A router of one's own: logits of four experts."""


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.head = Gate(6, 4), nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.gate(x).sigmoid()).square().mean()


def test_a_router_of_ones_own_is_named_by_its_form():
    torch.manual_seed(0)
    model, x = Own(), torch.randn(5, 6)
    loss = model(x)
    with pytest.raises(ValueError, match="What looks like one: Gate at 'gate'"):
        attach(model)
    attach(model, group_weight=2.0, forms={"Gate": RouterForm("sigmoid")})
    by_hand = group_norm(model.gate(x).sigmoid().detach())  # 2 x 2, h = 2
    torch.testing.assert_close(model(x), loss + 2 * by_hand)
    # Without values nothing is looked at.
    attach(meta := Own().to("meta"), forms={"Gate": RouterForm("sigmoid")})
    assert meta(x.to("meta")).is_meta


def test_a_wrapper_is_refused():
    compiled = torch.compile(make("mixtral"), backend="eager")
    for wrapper in (nn.DataParallel(make("mixtral")), compiled):
        with pytest.raises(ValueError, match="attach first, then compile or wrap"):
            attach(wrapper)


def test_threads_of_data_parallel_are_refused():
    model = make("mixtral")
    attach(model)
    model._is_replica = True
    with pytest.raises(RuntimeError, match=r"DataParallel.*use DistributedDataParallel"):
        model(**make_batch())


@pytest.mark.parametrize(("version", "old"), [("5.5.4", True), ("4.57.1", True), ("5.6.0", False),
                                              ("5.23.0.dev0", False), ("6.0", False)])  # fmt: skip
def test_an_older_transformers_is_refused(monkeypatch, version, old):
    monkeypatch.setattr(integration.transformers, "__version__", version)
    if old:
        with pytest.raises(ImportError, match=f"transformers >= 5.6, got {version}"):
            attach(mixtral())
    else:
        attach(mixtral())
