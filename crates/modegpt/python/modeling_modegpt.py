"""Causal language model whose layers were narrowed by modular decomposition (MoDeGPT, arXiv:2408.09632).

One file for the families opt, llama and gpt2, in plain torch. Modules are named as in transformers' own models of the
family, so tensors keep the names they had before compression; only shapes differ, and they differ from layer to layer.
A map may be held as a product of two (`ranks`); its tensors are then called `NAME.a.weight` and `NAME.b.weight`.
Works with transformers 4.40 to 5.x and torch 1.13 to 2.x.

Shapes in comments: B batch, T new tokens, S all tokens (cached and new), H heads, K key-value heads, r width of a head.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.pytorch_utils import Conv1D

from .configuration_modegpt import ModeGPTConfig


class Factorised(nn.Module):
    """`y = (x A) B + b`: two maps that meet at `rank`, in the place of one."""

    def __init__(self, d_in, d_out, rank, bias):
        super().__init__()
        self.a = nn.Linear(d_in, rank, bias=False)
        self.b = nn.Linear(rank, d_out, bias=bias)

    def forward(self, x):
        return self.b(self.a(x))


def rank_of(shape, name):
    """The rank of the map `name` in an entry of `layer_shapes`, or None where it is dense."""
    return (shape.get("ranks") or {}).get(name)


def linear(shape, name, d_in, d_out, bias):
    """The map `name` of a layer, dense or factorised."""
    rank = rank_of(shape, name)
    return nn.Linear(d_in, d_out, bias=bias) if rank is None else Factorised(d_in, d_out, rank, bias)


class Attention(nn.Module):
    """`softmax(Q Kᵀ · head_dim^-0.5 + mask) V`, where queries and keys share one width and values have another.

    The scale stays that of the original model: compression approximates the scores, it does not redefine them.
    """

    def __init__(self, config, layer_idx):
        super().__init__()
        shape = config.layer_shapes[layer_idx]
        self.layer_idx = layer_idx
        self.n_heads, self.n_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.query_width = self.n_heads * shape["query_key_dim"]
        self.key_width = self.n_kv_heads * shape["query_key_dim"]
        self.value_width = self.n_kv_heads * shape["value_dim"]
        self.output_width = self.n_heads * shape["value_dim"]
        self.scale = config.head_dim**-0.5

    def forward(self, x, masked, rotary=None, cache=None):
        query, key, value = self.project(x)
        query = split_heads(query, self.n_heads)  # [B, H, T, r_qk]
        key = split_heads(key, self.n_kv_heads)  # [B, K, T, r_qk]
        value = split_heads(value, self.n_kv_heads)  # [B, K, T, r_v]
        if rotary is not None:
            query, key = self.rotate(query, key, *rotary)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)  # [B, K, S, r]
        group = self.n_heads // self.n_kv_heads
        key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)  # [B, H, S, r]
        scores = torch.matmul(query * self.scale, key.transpose(-1, -2)).float()  # [B, H, T, S]
        weights = scores.masked_fill(masked, torch.finfo(torch.float32).min).softmax(dim=-1).to(value.dtype)
        heads = torch.matmul(weights, value).transpose(1, 2).contiguous()  # [B, T, H, r_v]
        return self.output(heads.flatten(2))


def split_heads(x, n_heads):
    """`[B, T, n_heads * r]` to `[B, n_heads, T, r]`."""
    batch, tokens, width = x.shape
    return x.view(batch, tokens, n_heads, width // n_heads).transpose(1, 2)


# ---- OPT ----


class OptAttention(Attention):
    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        bias, shape = config.base_config.get("enable_bias", True), config.layer_shapes[layer_idx]
        self.k_proj = linear(shape, "key", config.hidden_size, self.key_width, bias)
        self.v_proj = linear(shape, "value", config.hidden_size, self.value_width, bias)
        self.q_proj = linear(shape, "query", config.hidden_size, self.query_width, bias)
        self.out_proj = linear(shape, "output", self.output_width, config.hidden_size, bias)

    def project(self, x):
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)

    def output(self, heads):
        return self.out_proj(heads)


class OptLayer(nn.Module):
    """Attention and MLP, with norms before them, or after the sums where `do_layer_norm_before` is false (OPT-350m)."""

    def __init__(self, config, layer_idx):
        super().__init__()
        base, shape = config.base_config, config.layer_shapes[layer_idx]
        width = shape["intermediate_size"]
        bias, affine = base.get("enable_bias", True), base.get("layer_norm_elementwise_affine", True)
        self.norm_before = base.get("do_layer_norm_before", True)
        self.self_attn = OptAttention(config, layer_idx)
        self.activation = ACT2FN[base.get("activation_function", "relu")]
        self.self_attn_layer_norm = nn.LayerNorm(config.hidden_size, elementwise_affine=affine)
        self.fc1 = linear(shape, "up", config.hidden_size, width, bias)
        self.fc2 = linear(shape, "down", width, config.hidden_size, bias)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, elementwise_affine=affine)

    def forward(self, x, **attention):
        if self.norm_before:
            x = x + self.self_attn(self.self_attn_layer_norm(x), **attention)
            return x + self.mlp(self.final_layer_norm(x))
        x = self.self_attn_layer_norm(x + self.self_attn(x, **attention))
        return self.final_layer_norm(x + self.mlp(x))

    def mlp(self, x):
        return self.fc2(self.activation(self.fc1(x)))


class OptDecoder(nn.Module):
    POSITION_OFFSET = 2

    def __init__(self, config):
        super().__init__()
        base = config.base_config
        embedding_dim = base.get("word_embed_proj_dim") or config.hidden_size
        affine = base.get("layer_norm_elementwise_affine", True)
        self.embed_tokens = nn.Embedding(config.vocab_size, embedding_dim)
        self.embed_positions = nn.Embedding(config.max_position_embeddings + self.POSITION_OFFSET, config.hidden_size)
        self.project_out = self.project_in = None
        if embedding_dim != config.hidden_size:
            self.project_out = nn.Linear(config.hidden_size, embedding_dim, bias=False)
            self.project_in = nn.Linear(embedding_dim, config.hidden_size, bias=False)
        self.final_layer_norm = None
        if base.get("do_layer_norm_before", True) and not base.get("_remove_final_layer_norm", False):
            self.final_layer_norm = nn.LayerNorm(config.hidden_size, elementwise_affine=affine)
        self.layers = nn.ModuleList(OptLayer(config, i) for i in range(config.num_hidden_layers))


class OptModel(nn.Module):
    prefix, embedding = "model", "decoder.embed_tokens"

    def __init__(self, config):
        super().__init__()
        self.decoder = OptDecoder(config)
        self.head_width = self.decoder.embed_tokens.embedding_dim

    def blocks(self):
        return self.decoder.layers

    def enter(self, embeds, positions):
        if self.decoder.project_in is not None:
            embeds = self.decoder.project_in(embeds)
        positions = self.decoder.embed_positions(positions + OptDecoder.POSITION_OFFSET)
        return embeds + positions.to(embeds.device), None

    def leave(self, x):
        if self.decoder.final_layer_norm is not None:
            x = self.decoder.final_layer_norm(x)
        return x if self.decoder.project_out is None else self.decoder.project_out(x)


# ---- Llama ----


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x²) + eps) * weight`, computed in f32."""

    def __init__(self, width, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class LlamaAttention(Attention):
    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        bias, shape = config.base_config.get("attention_bias", False), config.layer_shapes[layer_idx]
        self.rotary_pairs = shape.get("rotary_pairs")
        self.rotary_index = None
        self.q_proj = linear(shape, "query", config.hidden_size, self.query_width, bias)
        self.k_proj = linear(shape, "key", config.hidden_size, self.key_width, bias)
        self.v_proj = linear(shape, "value", config.hidden_size, self.value_width, bias)
        self.o_proj = linear(shape, "output", self.output_width, config.hidden_size, bias)

    def project(self, x):
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)

    def output(self, heads):
        return self.o_proj(heads)

    def rotate(self, query, key, cos, sin):
        """Turns each kept pair by the angle of its original index; heads of a group keep the same pairs."""
        cos, sin = self.gather(cos).to(key.dtype), self.gather(sin).to(key.dtype)  # [B, K or 1, T, r_qk]
        key = key * cos + rotate_half(key) * sin
        if cos.shape[1] != 1:
            group = self.n_heads // self.n_kv_heads
            cos, sin = cos.repeat_interleave(group, dim=1), sin.repeat_interleave(group, dim=1)
        return query * cos + rotate_half(query) * sin, key

    def gather(self, table):
        """The kept columns of `[B, T, head_dim / 2]`, once for either half of a head: `[B, K or 1, T, r_qk]`."""
        if self.rotary_pairs is None:
            kept = table[:, None]
        else:
            # Made on first use and not a buffer: buffers outside the checkpoint are lost when loading by way of "meta".
            if self.rotary_index is None or self.rotary_index.device != table.device:
                self.rotary_index = torch.tensor(self.rotary_pairs, device=table.device)
            kept = table[..., self.rotary_index].transpose(1, 2)  # [B, K, T, r_qk / 2]
        return torch.cat((kept, kept), dim=-1)


def rotate_half(x):
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def rotary_frequencies(config):
    """Angle per token of every original pair, `theta^(-2p / head_dim)`, after `rope_scaling`: f32 `[head_dim / 2]`."""
    base = config.base_config
    scaling = base.get("rope_parameters") or base.get("rope_scaling") or {}
    theta = scaling.get("rope_theta") or base.get("rope_theta") or 10000.0
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    frequencies = theta ** -(torch.arange(0, config.head_dim, 2, dtype=torch.float32, device="cpu") / config.head_dim)
    if kind == "linear":
        return frequencies / scaling["factor"]
    if kind == "llama3":
        return llama3_frequencies(frequencies, scaling)
    if kind != "default":
        raise ValueError(f"rope_scaling: expected a type of default, linear or llama3, found `{kind}`")
    return frequencies


def llama3_frequencies(frequencies, scaling):
    """Long wavelengths are stretched by `factor`, short ones kept, those between blended."""
    factor, low, high = scaling["factor"], scaling["low_freq_factor"], scaling["high_freq_factor"]
    context = scaling["original_max_position_embeddings"]
    wavelengths = 2 * math.pi / frequencies
    blend = ((context / wavelengths - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - blend) * frequencies / factor + blend * frequencies


class LlamaMlp(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        shape, bias = config.layer_shapes[layer_idx], config.base_config.get("mlp_bias", False)
        width = shape["intermediate_size"]
        self.gate_proj = linear(shape, "gate", config.hidden_size, width, bias)
        self.up_proj = linear(shape, "up", config.hidden_size, width, bias)
        self.down_proj = linear(shape, "down", width, config.hidden_size, bias)
        self.activation = ACT2FN[config.base_config.get("hidden_act", "silu")]

    def forward(self, x):
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))


class LlamaLayer(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        eps = config.base_config.get("rms_norm_eps", 1e-6)
        self.self_attn = LlamaAttention(config, layer_idx)
        self.mlp = LlamaMlp(config, layer_idx)
        self.input_layernorm = RMSNorm(config.hidden_size, eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps)

    def forward(self, x, **attention):
        x = x + self.self_attn(self.input_layernorm(x), **attention)
        return x + self.mlp(self.post_attention_layernorm(x))


class LlamaModel(nn.Module):
    prefix, embedding = "model", "embed_tokens"

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.head_width = config.hidden_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(LlamaLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.base_config.get("rms_norm_eps", 1e-6))

    def blocks(self):
        return self.layers

    def enter(self, embeds, positions):
        frequencies = rotary_frequencies(self.config).to(positions.device)
        angles = positions.clamp(min=0)[..., None].float() * frequencies  # [B, T, head_dim / 2]
        return embeds, (angles.cos(), angles.sin())

    def leave(self, x):
        return self.norm(x)


# ---- GPT-2 ----


def conv1d(shape, name, d_in, d_out):
    """The map `name` of a layer, dense as `Conv1D` holds it, or factorised."""
    rank = rank_of(shape, name)
    return Conv1D(d_out, d_in) if rank is None else Factorised(d_in, d_out, rank, bias=True)


class Gpt2Attention(Attention):
    """Query, key and value are one map, `c_attn`, or three below it where one of them is factorised."""

    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        base, shape = config.base_config, config.layer_shapes[layer_idx]
        self.scale = self.scale if base.get("scale_attn_weights", True) else 1.0
        self.scale /= layer_idx + 1 if base.get("scale_attn_by_inverse_layer_idx", False) else 1
        self.widths = {"query": self.query_width, "key": self.key_width, "value": self.value_width}
        self.fused = all(rank_of(shape, name) is None for name in self.widths)
        if self.fused:
            self.c_attn = Conv1D(sum(self.widths.values()), config.hidden_size)
        else:
            maps = {name: conv1d(shape, name, config.hidden_size, width) for name, width in self.widths.items()}
            self.c_attn = nn.ModuleDict(maps)
        self.c_proj = conv1d(shape, "output", self.output_width, config.hidden_size)

    def project(self, x):
        if self.fused:
            return self.c_attn(x).split(tuple(self.widths.values()), dim=-1)
        return tuple(self.c_attn[name](x) for name in self.widths)

    def output(self, heads):
        return self.c_proj(heads)


class Gpt2Mlp(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        shape = config.layer_shapes[layer_idx]
        self.c_fc = conv1d(shape, "up", config.hidden_size, shape["intermediate_size"])
        self.c_proj = conv1d(shape, "down", shape["intermediate_size"], config.hidden_size)
        self.activation = ACT2FN[config.base_config.get("activation_function", "gelu_new")]

    def forward(self, x):
        return self.c_proj(self.activation(self.c_fc(x)))


class Gpt2Layer(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        eps = config.base_config.get("layer_norm_epsilon", 1e-5)
        self.ln_1 = nn.LayerNorm(config.hidden_size, eps=eps)
        self.attn = Gpt2Attention(config, layer_idx)
        self.ln_2 = nn.LayerNorm(config.hidden_size, eps=eps)
        self.mlp = Gpt2Mlp(config, layer_idx)

    def forward(self, x, **attention):
        x = x + self.attn(self.ln_1(x), **attention)
        return x + self.mlp(self.ln_2(x))


class Gpt2Model(nn.Module):
    prefix, embedding = "transformer", "wte"

    def __init__(self, config):
        super().__init__()
        self.head_width = config.hidden_size
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.wpe = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.h = nn.ModuleList(Gpt2Layer(config, i) for i in range(config.num_hidden_layers))
        self.ln_f = nn.LayerNorm(config.hidden_size, eps=config.base_config.get("layer_norm_epsilon", 1e-5))

    def blocks(self):
        return self.h

    def enter(self, embeds, positions):
        return embeds + self.wpe(positions.clamp(min=0)).to(embeds.device), None

    def leave(self, x):
        return self.ln_f(x)


# ---- the model ----

FAMILIES = {"opt": OptModel, "llama": LlamaModel, "gpt2": Gpt2Model}


class ModeGPTForCausalLM(PreTrainedModel, GenerationMixin):
    """The compressed model with its language-model head; use it as any causal model of transformers."""

    config_class = ModeGPTConfig
    _no_split_modules = ["OptLayer", "LlamaLayer", "Gpt2Layer"]
    _supports_cache_class = True
    accepts_loss_kwargs = False

    def __init__(self, config):
        super().__init__(config)
        body = FAMILIES[config.family](config)
        self.base_model_prefix = body.prefix
        setattr(self, body.prefix, body)
        self.lm_head = nn.Linear(body.head_width, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            # A list of names until transformers 5, a mapping since; a mapping also iterates over its names.
            self._tied_weights_keys = {"lm_head.weight": f"{body.prefix}.{body.embedding}.weight"}
        self.post_init()

    @property
    def body(self):
        return getattr(self, self.base_model_prefix)

    def get_input_embeddings(self):
        return self.body.get_submodule(self.body.embedding)

    def set_input_embeddings(self, module):
        owner, _, name = self.body.embedding.rpartition(".")
        setattr(self.body.get_submodule(owner), name, module)

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, module):
        self.lm_head = module

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        output_hidden_states=None,
        return_dict=None,
        logits_to_keep=0,
        **kwargs,
    ):
        """Logits of the last `logits_to_keep` tokens, or of all if 0; attention weights are never returned.

        `attention_mask` is `[B, S]`, 1 for tokens and 0 for padding. Positions count the tokens it shows, so that
        padding on the left changes nothing.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("expected either `input_ids` or `inputs_embeds`")
        embeds = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        cache = self.open_cache(past_key_values, self.config.use_cache if use_cache is None else use_cache)
        mask = full_mask(attention_mask, embeds, cache)
        if position_ids is None:
            position_ids = (mask.cumsum(-1) * mask - 1)[:, -embeds.shape[1] :]
        x, rotary = self.body.enter(embeds, position_ids)
        masked = masked_pairs(mask, embeds.shape[1])
        keep_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        states = []
        for block in self.body.blocks():
            states += [x] if keep_states else []
            x = block(x, masked=masked, rotary=rotary, cache=cache)
        x = self.body.leave(x)
        logits = self.lm_head(x[:, -logits_to_keep:])
        output = CausalLMOutputWithPast(
            loss=None if labels is None else next_token_loss(logits, labels),
            logits=logits,
            past_key_values=cache,
            hidden_states=(*states, x) if keep_states else None,
        )
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def open_cache(self, past_key_values, use_cache):
        if isinstance(past_key_values, (tuple, list)):  # before DynamicCache became the only form
            return DynamicCache.from_legacy_cache(past_key_values)
        return DynamicCache() if past_key_values is None and use_cache else past_key_values

    def prepare_inputs_for_generation(
        self, input_ids, past_key_values=None, attention_mask=None, inputs_embeds=None, **kwargs
    ):
        """Leaves out the tokens that the cache has seen."""
        seen = past_length(past_key_values)
        inputs = {"attention_mask": attention_mask, "past_key_values": past_key_values}
        inputs.update({name: kwargs[name] for name in ("use_cache", "logits_to_keep") if name in kwargs})
        if inputs_embeds is not None and seen == 0:
            return {"inputs_embeds": inputs_embeds, **inputs}
        total = input_ids.shape[1] if attention_mask is None else attention_mask.shape[1]
        return {"input_ids": input_ids[:, -(total - seen) :], **inputs}


def past_length(past_key_values):
    """Number of tokens in a cache of either form."""
    if past_key_values is None:
        return 0
    if isinstance(past_key_values, (tuple, list)):
        return past_key_values[0][0].shape[2]
    return past_key_values.get_seq_length()


def full_mask(attention_mask, embeds, cache):
    """The given mask, or one without padding, over all tokens: int64 `[B, S]`."""
    total = past_length(cache) + embeds.shape[1]
    if attention_mask is None:
        return torch.ones(embeds.shape[0], total, dtype=torch.long, device=embeds.device)
    if tuple(attention_mask.shape) != (embeds.shape[0], total):
        raise ValueError(
            f"expected an attention_mask of shape {(embeds.shape[0], total)}, found {tuple(attention_mask.shape)}"
        )
    return attention_mask.long()


def masked_pairs(mask, n_new):
    """True where a new token must not look: ahead, or at padding. `[B, 1, T, S]`."""
    order = torch.arange(mask.shape[1], device=mask.device)
    ahead = order[None, :] > order[-n_new:, None]  # [T, S]
    return ahead | (mask[:, None, None, :] == 0)


def next_token_loss(logits, labels):
    """Mean cross entropy of every token given those before it, in f32; label -100 is left out."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten().to(logits.device))


ModeGPTForCausalLM.register_for_auto_class("AutoModelForCausalLM")
