"""Tiny transformers with random weights, one of every family whose FFNs are known."""

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    SwinConfig,
    SwinForImageClassification,
    Swinv2Config,
    Swinv2ForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    YolosConfig,
    YolosModel,
)

# Two stages of two blocks: 8 and 16 wide, with FFNs twice that.
SWIN = {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2],
        "window_size": 4, "mlp_ratio": 2.0}  # fmt: skip
VIT = {"image_size": 16, "patch_size": 8, "hidden_size": 8, "num_hidden_layers": 3,
       "num_attention_heads": 2, "intermediate_size": 24}  # fmt: skip


def make(family, dropout=0.0, **settings):
    """Return (model, input) of ``family``; weights large enough for an FFN to matter."""
    torch.manual_seed(0)
    hidden = {"hidden_dropout_prob": dropout, "initializer_range": 0.5, **settings}
    if family == "vit":
        model = ViTForImageClassification(ViTConfig(**VIT, **hidden))
    elif family == "swin":
        model = SwinForImageClassification(SwinConfig(**SWIN, **hidden))
    elif family == "swinv2":
        model = Swinv2ForImageClassification(Swinv2Config(**SWIN, **hidden))
    elif family == "yolos":
        model = YolosModel(YolosConfig(**VIT | {"image_size": [16, 16]}, **hidden))
    elif family == "gpt2":
        settings = {"activation_function": "relu", **settings}
        model = GPT2LMHeadModel(
            GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=3, n_head=2, n_inner=24,
                       resid_pdrop=dropout, initializer_range=0.5, **settings)
        )  # fmt: skip
    elif family == "llama":
        model = LlamaForCausalLM(
            LlamaConfig(vocab_size=11, hidden_size=8, intermediate_size=24, num_hidden_layers=3,
                        num_attention_heads=2, initializer_range=0.5, **settings)
        )  # fmt: skip
    else:
        raise KeyError(family)
    text = family in ("gpt2", "llama")
    x = torch.randint(11, (2, 8)) if text else torch.randn(2, 3, 16, 16)
    return model.eval(), x


def output(model, x):
    """Return the logits, or the last hidden state of a model without a head."""
    found = model(x)
    return found.logits if "logits" in found else found.last_hidden_state
