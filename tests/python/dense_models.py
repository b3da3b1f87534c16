"""Tiny random models of transformers' own classes, one for each corner of the families' configurations."""

import torch
import transformers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def opt(**changes):
    sizes = {"hidden_size": 20, "word_embed_proj_dim": 20, "ffn_dim": 37, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 2, "vocab_size": 97, "max_position_embeddings": 128}
    return loud(OPTForCausalLM, OPTConfig(**{**sizes, **heads, **changes}))


def llama(**changes):
    sizes = {"hidden_size": 48, "intermediate_size": 37, "num_hidden_layers": 3, "vocab_size": 97}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 128}
    return loud(LlamaForCausalLM, LlamaConfig(**{**sizes, **heads, **changes}))


def gpt2(**changes):
    sizes = {"n_embd": 20, "n_layer": 3, "n_head": 2, "vocab_size": 97, "n_positions": 128}
    return loud(GPT2LMHeadModel, GPT2Config(**{**sizes, "bos_token_id": 2, "eos_token_id": 2, **changes}))


def loud(kind, config):
    """A model whose weights, norms and biases are far enough from zero and one that every term is seen."""
    torch.manual_seed(7)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.3 if parameter.dim() == 1 else parameter.shape[-1] ** -0.5
            parameter.copy_(parameter.mean().round() + spread * torch.randn_like(parameter))
    return model


def since(release, make):
    """The model `make` builds, or None where transformers is older than the `release` that knows of it."""
    known = tuple(int(part) for part in transformers.__version__.split(".")[:2]) >= release
    return make() if known else None


RANDOM_MODELS = {
    "opt post-norm, projected embedding (as OPT-350m)": lambda: opt(do_layer_norm_before=False, word_embed_proj_dim=12),
    "opt gelu, no bias": lambda: opt(activation_function="gelu", enable_bias=False),
    # Some releases before 5 cannot load this themselves.
    "opt norms without weights": lambda: since((5, 0), lambda: opt(layer_norm_elementwise_affine=False)),
    "opt untied": lambda: opt(tie_word_embeddings=False),
    "llama groups of 3, attention biases, untied": lambda: llama(attention_bias=True, tie_word_embeddings=False),
    "llama mlp biases": lambda: since((4, 41), lambda: llama(mlp_bias=True)),
    "llama heads wider than hidden size": lambda: since((4, 48), lambda: llama(head_dim=10, tie_word_embeddings=True)),
    "llama linear rope, gelu": lambda: llama(
        rope_scaling={"type": "linear", "factor": 2.5}, hidden_act="gelu"
    ),
    "llama3 rope, tied": lambda: since(
        (4, 43), lambda: llama(rope_scaling=dict(LLAMA3_ROPE), tie_word_embeddings=True)
    ),
    "gpt2 gelu_new, inner width of 4": lambda: gpt2(),
    "gpt2 relu, odd inner width, untied": lambda: gpt2(
        n_inner=37, activation_function="relu", tie_word_embeddings=False
    ),
    "gpt2 inverse layer scale": lambda: gpt2(scale_attn_by_inverse_layer_idx=True),
}
