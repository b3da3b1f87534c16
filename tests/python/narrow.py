"""Narrows a dense model by hand: the same coordinates dropped once by slicing and once by setting them to zero."""

import random

import torch

# Where a family keeps its maps; `out_axis` is the axis of outputs in a stored weight.
FAMILIES = {
    "opt": {
        "layer": "model.decoder.layers.{}.",
        "out_axis": 0,
        "query": "self_attn.q_proj",
        "key": "self_attn.k_proj",
        "value": "self_attn.v_proj",
        "output": "self_attn.out_proj",
        "up": ["fc1"],
        "down": "fc2",
    },
    "llama": {
        "layer": "model.layers.{}.",
        "out_axis": 0,
        "query": "self_attn.q_proj",
        "key": "self_attn.k_proj",
        "value": "self_attn.v_proj",
        "output": "self_attn.o_proj",
        "up": ["mlp.gate_proj", "mlp.up_proj"],
        "down": "mlp.down_proj",
    },
    "gpt2": {
        "layer": "transformer.h.{}.",
        "out_axis": 1,
        "fused": "attn.c_attn",
        "output": "attn.c_proj",
        "up": ["mlp.c_fc"],
        "down": "mlp.c_proj",
    },
}


def narrow(family, config, dense_layers, state, seed):
    """Returns the sliced tensors, the zeroed tensors, and `per_layer_config`; the first layer is left as it is."""
    choose = random.Random(seed)
    sliced, zeroed, layers = dict(state), {name: tensor.clone() for name, tensor in state.items()}, dense_layers[:1]
    for index in range(1, config["num_hidden_layers"]):
        rotary = config["base_config"]["model_type"] == "llama"
        kept = choose_kept(config, dense_layers[index], rotary, choose)
        narrow_layer(family, config, family["layer"].format(index), kept, sliced, zeroed)
        layers.append(
            {
                "intermediate_size": len(kept["units"]),
                "query_key_dim": len(kept["query_key"][0]),
                "value_dim": len(kept["value"][0]),
                "rotary_pairs": kept["pairs"],
            }
        )
    return sliced, zeroed, layers


def choose_kept(config, layer, rotary, choose):
    """Other coordinates in every head, another width of every kind in every layer; whole pairs if `rotary`."""
    width, n_kv_heads, half = layer["query_key_dim"], config["num_key_value_heads"], layer["query_key_dim"] // 2
    n_query_key, n_value = choose.randint(1, (half if rotary else width) - 1), choose.randint(1, width - 1)
    units = some(choose, layer["intermediate_size"], choose.randint(1, layer["intermediate_size"] - 1))
    pairs = [some(choose, half, n_query_key) for _ in range(n_kv_heads)] if rotary else None
    return {
        "units": units,
        "pairs": pairs,
        "query_key": [head + [half + pair for pair in head] for head in pairs]
        if rotary
        else [some(choose, width, n_query_key) for _ in range(n_kv_heads)],
        "value": [some(choose, width, n_value) for _ in range(n_kv_heads)],
    }


def some(choose, total, count):
    return sorted(choose.sample(range(total), count))


def narrow_layer(family, config, prefix, kept, sliced, zeroed):
    n_heads, n_kv_heads, width = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    group, out_axis = n_heads // n_kv_heads, family["out_axis"]
    query = across_heads(kept["query_key"], group, width)
    key, value = across_heads(kept["query_key"], 1, width), across_heads(kept["value"], 1, width)
    output = across_heads(kept["value"], group, width)
    if "fused" in family:
        offset = n_heads * width
        columns = query + [offset + i for i in key] + [2 * offset + i for i in value]
        outputs = [(family["fused"], columns)]
    else:
        outputs = [(family["query"], query), (family["key"], key), (family["value"], value)]
    outputs += [(name, kept["units"]) for name in family["up"]]
    for name, indices in outputs:
        drop(sliced, zeroed, f"{prefix}{name}.weight", out_axis, indices)
        if f"{prefix}{name}.bias" in sliced:
            drop(sliced, zeroed, f"{prefix}{name}.bias", 0, indices)
    for name, indices in ((family["output"], output), (family["down"], kept["units"])):
        drop(sliced, zeroed, f"{prefix}{name}.weight", 1 - out_axis, indices)


def across_heads(kept, group, width):
    """Rows of a stacked map: head `h` keeps what its key-value head `h // group` keeps."""
    return [h * width + i for h in range(len(kept) * group) for i in kept[h // group]]


def drop(sliced, zeroed, name, axis, kept):
    kept = torch.tensor(kept)
    sliced[name] = sliced[name].index_select(axis, kept).contiguous()
    shown = torch.zeros(zeroed[name].shape[axis], dtype=zeroed[name].dtype)
    shown[kept] = 1
    zeroed[name] *= shown.view([-1 if i == axis else 1 for i in range(zeroed[name].dim())])
