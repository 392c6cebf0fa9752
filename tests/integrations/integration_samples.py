"""Tiny MoE models of transformers with random weights, one of every family that is tested."""

import torch
import transformers as tf

VOCABULARY = 13
TEXT = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 16,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
        "num_experts_per_tok": 2, "initializer_range": 0.5, "max_position_embeddings": 32,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
EXPERTS = {"num_experts": 8, "moe_intermediate_size": 8, "decoder_sparse_step": 1}
ROUTED = {"n_routed_experts": 8, "moe_intermediate_size": 8, "first_k_dense_replace": 0,
          "n_group": 2, "topk_group": 1, "n_shared_experts": 1}  # fmt: skip
LATENT = {**ROUTED, "q_lora_rank": None, "kv_lora_rank": 8, "qk_rope_head_dim": 8,
          "qk_nope_head_dim": 8, "v_head_dim": 8}  # fmt: skip
VISION = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
          "num_attention_heads": 2, "image_size": 8, "patch_size": 4}  # fmt: skip
SWITCH = {"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 2,
          "num_decoder_layers": 2, "num_heads": 2, "num_experts": 8, "num_sparse_encoder_layers": 1,
          "num_sparse_decoder_layers": 1, "dropout_rate": 0.0, "router_jitter_noise": 0.0,
          "pad_token_id": 0, "decoder_start_token_id": 0}  # fmt: skip
NLLB = {"vocab_size": VOCABULARY, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16, "num_experts": 8, "expert_capacity": 64, "encoder_sparse_step": 2,
        "decoder_sparse_step": 2, "dropout": 0.0, "attention_dropout": 0.0,
        "activation_dropout": 0.0, "moe_token_dropout": 0.0, "init_std": 0.5,
        "pad_token_id": 1, "max_position_embeddings": 32}  # fmt: skip


def mixtral(layers=2, experts=None):
    config = tf.MixtralConfig(**{**TEXT, "num_hidden_layers": layers}, num_local_experts=8)
    return tf.MixtralForCausalLM._from_config(config, experts_implementation=experts)


def llava():
    text = tf.MixtralConfig(**TEXT, num_local_experts=8)
    config = tf.LlavaConfig(vision_config=tf.CLIPVisionConfig(**VISION), text_config=text,
                            image_token_index=3, vision_feature_layer=-1)  # fmt: skip
    return tf.LlavaForConditionalGeneration(config)


# Family: how to make it, and its score function.
FAMILIES = {
    "mixtral": (mixtral, "softmax"),
    "olmoe": (lambda: tf.OlmoeForCausalLM(tf.OlmoeConfig(**TEXT, num_experts=8)), "softmax"),
    "qwen2_moe": (lambda: tf.Qwen2MoeForCausalLM(
        tf.Qwen2MoeConfig(**TEXT, **EXPERTS, shared_expert_intermediate_size=8)), "softmax"),
    "qwen3_moe": (lambda: tf.Qwen3MoeForCausalLM(
        tf.Qwen3MoeConfig(**TEXT, **EXPERTS, head_dim=8)), "softmax"),
    "deepseek_v2": (lambda: tf.DeepseekV2ForCausalLM(
        tf.DeepseekV2Config(**TEXT, **LATENT, topk_method="group_limited_greedy")), "softmax"),
    "deepseek_v3": (lambda: tf.DeepseekV3ForCausalLM(
        tf.DeepseekV3Config(**TEXT, **LATENT)), "sigmoid"),
    "glm4_moe": (lambda: tf.Glm4MoeForCausalLM(
        tf.Glm4MoeConfig(**TEXT, **ROUTED, head_dim=8)), "sigmoid"),
    "gpt_oss": (lambda: tf.GptOssForCausalLM(
        tf.GptOssConfig(**TEXT, num_local_experts=8, head_dim=8)), "softmax"),
    "granitemoe": (lambda: tf.GraniteMoeForCausalLM(
        tf.GraniteMoeConfig(**TEXT, num_local_experts=8)), "softmax"),
    "switch": (lambda: tf.SwitchTransformersForConditionalGeneration(
        tf.SwitchTransformersConfig(**SWITCH)), "softmax"),
    "nllb": (lambda: tf.NllbMoeForConditionalGeneration(tf.NllbMoeConfig(**NLLB)), "softmax"),
    "llava": (llava, "softmax"),
}  # fmt: skip


def make(family, **settings):
    """Return the model of ``family`` in training mode: two routers, 8 experts each."""
    torch.manual_seed(0)
    return FAMILIES[family][0](**settings).train()


def make_batch(seed=1, padding=(0, 3)):
    """Return input_ids, attention_mask and labels, (2, 8); ``padding`` of each row at its end."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, VOCABULARY, (2, 8), generator=generator)
    mask = torch.ones(2, 8, dtype=torch.long)
    for row, count in enumerate(padding):
        mask[row, 8 - count :] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
