"""A tiny `config.json` of many architectures, each with what makes it special."""

from typing import Any

LLAMA_LIKE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
GPT_LIKE = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
HEAD = {"head_dim": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": LLAMA_LIKE,
    "mistral": {**LLAMA_LIKE, "sliding_window": 16},
    "qwen2": LLAMA_LIKE,
    "qwen3": {**LLAMA_LIKE, **HEAD},
    "gemma2": {**LLAMA_LIKE, **HEAD, "query_pre_attn_scalar": 8, "sliding_window": 16},
    "gemma3_text": {**LLAMA_LIKE, **HEAD, "query_pre_attn_scalar": 8, "sliding_window": 16},
    "phi": {**LLAMA_LIKE, "num_key_value_heads": 4},
    "phi3": {**LLAMA_LIKE, "original_max_position_embeddings": 64},
    "gpt2": GPT_LIKE,
    "gpt_neox": {**LLAMA_LIKE, "rotary_pct": 0.5},
    "opt": {**LLAMA_LIKE, "ffn_dim": 64, "word_embed_proj_dim": 16},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "olmo2": LLAMA_LIKE,
    "cohere": LLAMA_LIKE,
    "granite": {**LLAMA_LIKE, "logits_scaling": 4.0},
    "starcoder2": LLAMA_LIKE,
    "stablelm": LLAMA_LIKE,
    "mixtral": {**LLAMA_LIKE, "num_local_experts": 4},
    "qwen2_moe": {**LLAMA_LIKE, **EXPERTS, "shared_expert_intermediate_size": 32},
    "qwen3_moe": {**LLAMA_LIKE, **HEAD, **EXPERTS},
    "gpt_oss": {**LLAMA_LIKE, **HEAD, "num_local_experts": 4, "num_experts_per_tok": 2},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
    "mamba2": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1},
    "recurrent_gemma": {**LLAMA_LIKE, "lru_width": 32, "block_types": ["recurrent", "attention"]},
    "smollm3": {**LLAMA_LIKE, "pad_token_id": 0},
}


def tiny_config(name: str) -> dict[str, Any]:
    """Returns an architecture's values as its `config.json` would hold them."""
    return {"model_type": name, **ARCHITECTURES[name]}
