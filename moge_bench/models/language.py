"""Decoder language models on transformers' GPT-2."""

from __future__ import annotations

from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from moge_bench.config import LanguageModelConfig


def build_gpt2(config: LanguageModelConfig, vocabulary_size: int) -> nn.Module:
    """Return a GPT-2 with tied embeddings; ``model(tokens).logits`` is (B, L, vocabulary_size)."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocabulary_size,
            n_positions=config.context,
            n_embd=config.hidden_size,
            n_layer=config.depth,
            n_head=config.num_heads,
            n_inner=config.ffn_size,
            activation_function=config.activation,
            resid_pdrop=config.dropout,
            embd_pdrop=config.dropout,
            attn_pdrop=config.dropout,
            use_cache=False,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
