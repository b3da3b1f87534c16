"""Factorises a dense model by hand: the same maps once as two factors and once as their product."""

import random

import torch


def factorise(family, config, dense_layers, state, choose_rank):
    """Returns the tensors with factors, those with products in their place, and `per_layer_config`.

    `choose_rank(index, name, full)` is the rank of a map, or None to leave it dense.
    """
    factored, product, layers = dict(state), dict(state), []
    for index, layer in enumerate(dense_layers):
        prefix, width = family["layer"].format(index), config["num_attention_heads"] * config["head_dim"]
        maps = maps_of(family, prefix, width, state)
        ranks = {name: choose_rank(index, name, min(weight.shape)) for name, (_, weight, _) in maps.items()}
        ranks = {name: rank for name, rank in ranks.items() if rank is not None}
        if "fused" in family and ranks.keys() & {"query", "key", "value"}:
            split_fused(prefix + family["fused"], maps, factored)
        for name, rank in ranks.items():
            stored, weight, bias = maps[name]
            a, b = factors(weight, rank)
            factored.pop(f"{stored}.weight")
            factored.update({f"{stored}.a.weight": a, f"{stored}.b.weight": b})
            if bias is not None:
                factored[f"{stored}.b.bias"] = factored.pop(f"{stored}.bias")
            multiplied = (b.double() @ a.double()).to(weight.dtype)
            place_product(family, prefix, name, multiplied, width, stored, product)
        layers.append({**layer, "ranks": ranks})
    return factored, product, layers


def maps_of(family, prefix, width, state):
    """Every map of a layer by its name: its own tensors' name, its weight as `[d_out, d_in]`, its bias or None."""

    def map_at(name, columns=slice(None), part=""):
        weight, bias = state[f"{prefix}{name}.weight"], state.get(f"{prefix}{name}.bias")
        weight = (weight if family["out_axis"] == 0 else weight.t())[columns]
        return prefix + name + part, weight, bias if bias is None else bias[columns]

    up = dict(zip(("gate", "up") if len(family["up"]) == 2 else ("up",), family["up"]))
    maps = {name: map_at(stored) for name, stored in {"output": family["output"], **up, "down": family["down"]}.items()}
    for place, name in enumerate(("query", "key", "value")):
        if "fused" in family:
            maps[name] = map_at(family["fused"], slice(place * width, (place + 1) * width), f".{name}")
        else:
            maps[name] = map_at(family[name])
    return maps


def split_fused(fused, maps, factored):
    """Three tensors in the place of one, each as `Conv1D` holds it."""
    for kind in ("weight", "bias"):
        factored.pop(f"{fused}.{kind}")
    for name in ("query", "key", "value"):
        stored, weight, bias = maps[name]
        factored.update({f"{stored}.weight": weight.t().contiguous(), f"{stored}.bias": bias.clone()})


def factors(weight, rank):
    """`a: [rank, d_in]` and `b: [d_out, rank]`, the best of this rank, for `weight: [d_out, d_in]`."""
    left, values, right = torch.linalg.svd(weight.double(), full_matrices=False)
    roots = values[:rank].sqrt()
    a, b = roots[:, None] * right[:rank], left[:, :rank] * roots
    return a.to(weight.dtype).contiguous(), b.to(weight.dtype).contiguous()


def place_product(family, prefix, name, weight, width, stored, product):
    """Puts `weight: [d_out, d_in]` where the dense model has it."""
    if family["out_axis"] == 0:
        product[f"{stored}.weight"] = weight.contiguous()
    elif name in ("query", "key", "value"):
        place = ("query", "key", "value").index(name)
        fused = product[f"{prefix}{family['fused']}.weight"].clone()
        fused[:, place * width : (place + 1) * width] = weight.t()
        product[f"{prefix}{family['fused']}.weight"] = fused
    else:
        product[f"{stored}.weight"] = weight.t().contiguous()


def uneven(seed):
    """Another rank for every map of every layer, about a third of the maps dense, the first layer all dense."""
    choose = random.Random(seed)
    return lambda index, name, full: None if index == 0 or choose.random() < 0.3 else choose.randint(1, full)
