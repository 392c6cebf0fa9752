"""Decoder language models on transformers' GPT-2."""

from __future__ import annotations

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from moge_bench.config import LanguageModelConfig


def build_gpt2(config: LanguageModelConfig, vocabulary_size: int) -> nn.Module:
    """Return a GPT-2 with tied embeddings; ``model(tokens).logits`` is (B, L, vocabulary_size).

    A window of more than ``config.context`` tokens has no positions: ValueError when it is read.
    """
    of_attention = config.attention_dropout
    model = GPT2LMHeadModel(
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
            attn_pdrop=config.dropout if of_attention is None else of_attention,
            use_cache=False,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    model.transformer.wpe.register_forward_pre_hook(_check_window)
    return model


def _check_window(positions: nn.Embedding, inputs: tuple[torch.Tensor]) -> None:
    length, context = inputs[0].shape[-1], positions.num_embeddings
    if length > context:
        raise ValueError(f"tokens must be at most model.context={context} a window, got {length}")
