"""Configuration of a causal language model whose layers were narrowed by modular decomposition (MoDeGPT).

`config.json` holds the sizes that every layer shares, the widths of each layer (`per_layer_config`), and the original
model's configuration, verbatim (`base_config`), from which everything else is read: activation, norm, biases, rotary
base. Works with transformers 4.40 to 5.x.
"""

from transformers import PretrainedConfig

FAMILIES = ("opt", "llama", "gpt2")
MAPS = ("query", "key", "value", "output", "gate", "up", "down")


class ModeGPTConfig(PretrainedConfig):
    """Sizes of a compressed model.

    - `base_config`: the original `config.json`; its `model_type` names the family: opt, llama or gpt2
    - `head_dim`: width of a head *before* compression; queries stay scaled by `head_dim ** -0.5`
    - `per_layer_config`: one entry per layer. `intermediate_size` is the width of the MLP; `query_key_dim` and
      `value_dim` are widths per head; `rotary_pairs` (llama only) lists, for each key-value head, the rotary pairs
      kept out of `head_dim / 2`, ascending, or is null where all are kept; `ranks` (may be absent) gives the rank of
      each map that is held as a product of two, by its name: query, key, value, output, gate, up, down

    The entries are held in `layer_shapes`: transformers >= 5.15 uses the attribute `per_layer_config` itself, for
    something else. In JSON the name stays `per_layer_config`.
    """

    model_type = "modegpt"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(
        self,
        base_config=None,
        per_layer_config=None,
        vocab_size=0,
        hidden_size=0,
        num_hidden_layers=0,
        num_attention_heads=1,
        num_key_value_heads=None,
        head_dim=1,
        max_position_embeddings=0,
        use_cache=True,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        **kwargs,
    ):
        self.base_config = dict(base_config or {})
        self.layer_shapes = [dict(shape) for shape in per_layer_config or []]
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_attention_heads if num_key_value_heads is None else num_key_value_heads
        self.head_dim = head_dim
        self.max_position_embeddings = max_position_embeddings
        self.use_cache = use_cache
        token_ids = {"bos_token_id": bos_token_id, "eos_token_id": eos_token_id, "pad_token_id": pad_token_id}
        super().__init__(tie_word_embeddings=tie_word_embeddings, **token_ids, **kwargs)
        # transformers 5 takes over only some of these from the arguments.
        self.tie_word_embeddings = tie_word_embeddings
        for name, token_id in token_ids.items():
            setattr(self, name, token_id)
        self._check()

    @property
    def family(self):
        """Model type of the original model: opt, llama or gpt2."""
        return self.base_config.get("model_type")

    def to_dict(self):
        output = super().to_dict()
        output["per_layer_config"] = output.pop("layer_shapes")
        return output

    def _check(self):
        """Raises `ValueError` where widths are missing, impossible, or do not fit each other."""
        if not self.base_config:
            return  # transformers builds an empty configuration to learn the defaults
        if self.family not in FAMILIES:
            raise ValueError(f"base_config: expected a `model_type` of {', '.join(FAMILIES)}, found `{self.family}`")
        if len(self.layer_shapes) != self.num_hidden_layers:
            raise ValueError(
                f"per_layer_config: expected {self.num_hidden_layers} layers, found {len(self.layer_shapes)}"
            )
        if self.num_attention_heads % self.num_key_value_heads != 0:
            raise ValueError(
                f"expected num_attention_heads to be a multiple of num_key_value_heads, "
                f"found {self.num_attention_heads} and {self.num_key_value_heads}"
            )
        for index, shape in enumerate(self.layer_shapes):
            for name in ("intermediate_size", "query_key_dim", "value_dim"):
                if not (isinstance(shape.get(name), int) and shape[name] >= 1):
                    raise ValueError(f"layer {index}: expected `{name}` of at least 1, found {shape.get(name)}")
            self._check_rotary_pairs(index, shape)
            self._check_ranks(index, shape)

    def _check_rotary_pairs(self, index, shape):
        pairs, width = shape.get("rotary_pairs"), shape["query_key_dim"]
        if self.family != "llama":
            if pairs is not None:
                raise ValueError(f"layer {index}: `rotary_pairs` found, but {self.family} has no rotary embedding")
        elif pairs is None:
            if width != self.head_dim:
                raise ValueError(f"layer {index}: query_key_dim {width} of {self.head_dim} needs `rotary_pairs`")
        elif len(pairs) != self.num_key_value_heads or any(2 * len(head) != width for head in pairs):
            raise ValueError(
                f"layer {index}: expected `rotary_pairs` of {self.num_key_value_heads} heads with {width}/2 pairs, "
                f"found {[len(head) for head in pairs]}"
            )
        elif any(not 0 <= pair < self.head_dim // 2 for head in pairs for pair in head):
            raise ValueError(f"layer {index}: expected `rotary_pairs` below {self.head_dim // 2}")

    def _check_ranks(self, index, shape):
        heads, kv_heads, inner = self.num_attention_heads, self.num_key_value_heads, shape["intermediate_size"]
        widths = (
            heads * shape["query_key_dim"],
            kv_heads * shape["query_key_dim"],
            kv_heads * shape["value_dim"],
            heads * shape["value_dim"],
            inner,
            inner,
            inner,
        )
        most = {name: min(width, self.hidden_size) for name, width in zip(MAPS, widths)}
        if self.family != "llama":
            most.pop("gate")
        for name, rank in (shape.get("ranks") or {}).items():
            if name not in most:
                raise ValueError(f"layer {index}: expected `ranks` of {', '.join(most)}, found `{name}`")
            if rank is not None and not (isinstance(rank, int) and 1 <= rank <= most[name]):
                raise ValueError(f"layer {index}: expected a rank of `{name}` from 1 to {most[name]}, found {rank}")


ModeGPTConfig.register_for_auto_class()
