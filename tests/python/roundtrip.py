"""Compressed folders as transformers sees them: does the Python side compute what the Rust side meant?

    python3 roundtrip.py                      self-test: dense models wrapped, narrowed and factorised by hand, against
                                              transformers' own classes; real models from $MODEGPT_DATA/models
    python3 roundtrip.py DENSE_DIR OUT_DIR [--logits FILE.safetensors] [--ids FILE.json]
                                              a folder the Rust side wrote, against the model it was made from

`--ids` is a JSON list of equally long lists of token ids (or one list); `--logits` holds the tensor `logits`,
`[batch, tokens, vocab]`, for these ids. Prints the largest difference of every comparison; the exit status is 1 after
the first one that fails. What to install is in requirements.txt beside this file.
"""

import argparse
import json
import os
import pathlib
import shutil
import sys
import tempfile

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from dense_models import RANDOM_MODELS
from factorise import factorise, uneven
from narrow import FAMILIES, narrow

HERE = pathlib.Path(__file__).resolve().parent
CODE = HERE.parents[1] / "crates" / "modegpt" / "python"
DATA = pathlib.Path(os.environ.get("MODEGPT_DATA", HERE.parents[2] / "shared" / "data"))
REAL_MODELS = ("opt-tiny-stories", "stories260k", "gpt2-tiny-stories")

# Two programs that add the same f32 numbers in another order; logits are of order 10.
SAME_ARITHMETIC = 1e-4
# Rust and torch: other kernels, other order, f16 weights widened.
OTHER_RUNTIME = 1e-3


class Failure(Exception):
    """One comparison that did not hold."""


def require(holds, message):
    if not holds:
        raise Failure(message)


def close(what, found, expected, tolerance):
    """Prints the largest difference; fails above `tolerance`, at another shape, and at anything not finite."""
    shapes = f"{what}: expected shape {tuple(expected.shape)}, found {tuple(found.shape)}"
    require(found.shape == expected.shape, shapes)
    difference = (found - expected).abs().max().item()
    print(f"  {what}: largest difference {difference:.2e} (logits up to {expected.abs().max().item():.1f})")
    require(difference <= tolerance, f"{what}: expected a difference of at most {tolerance}, found {difference}")


# ---- folders ----


def dense_layers(config):
    """`per_layer_config` of an uncompressed model."""
    head_dim = config["head_dim"]
    inner = config.pop("dense_intermediate_size")
    layer = {"intermediate_size": inner, "query_key_dim": head_dim, "value_dim": head_dim, "rotary_pairs": None}
    return [dict(layer) for _ in range(config["num_hidden_layers"])]


def shared_config(base, dense):
    """The fields of config.json that all layers share, as the Rust side writes them, from a dense model."""
    read = dense.config
    inner = {"opt": "ffn_dim", "llama": "intermediate_size", "gpt2": "n_inner"}[base["model_type"]]
    heads = read.num_attention_heads
    return {
        "model_type": "modegpt",
        "architectures": ["ModeGPTForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_modegpt.ModeGPTConfig",
            "AutoModelForCausalLM": "modeling_modegpt.ModeGPTForCausalLM",
        },
        "base_config": base,
        "vocab_size": read.vocab_size,
        "hidden_size": read.hidden_size,
        "num_hidden_layers": read.num_hidden_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": getattr(read, "num_key_value_heads", None) or heads,
        "head_dim": getattr(read, "head_dim", None) or read.hidden_size // heads,
        "max_position_embeddings": read.max_position_embeddings,
        "tie_word_embeddings": read.tie_word_embeddings,
        "bos_token_id": base.get("bos_token_id"),
        "eos_token_id": base.get("eos_token_id"),
        "pad_token_id": base.get("pad_token_id"),
        "torch_dtype": "float32",
        "dense_intermediate_size": getattr(read, inner) or 4 * read.hidden_size,
    }


def load_dense(src):
    """Transformers' own class in f32, with its config.json verbatim.

    Eager, because fused attention ignores `scale_attn_by_inverse_layer_idx` of gpt2 in some releases.
    """
    base = json.loads((pathlib.Path(src) / "config.json").read_text())
    return AutoModelForCausalLM.from_pretrained(src, attn_implementation="eager").float().eval(), base


def stored_state(dense):
    """The tensors transformers saves: a tied head is stored once."""
    state = {name: tensor.detach().clone().contiguous() for name, tensor in dense.state_dict().items()}
    if dense.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    return state


def write_folder(dst, config, layers, state):
    dst = pathlib.Path(dst)
    dst.mkdir(parents=True, exist_ok=True)
    (dst / "config.json").write_text(json.dumps({**config, "per_layer_config": layers}, indent=2))
    save_file(state, str(dst / "model.safetensors"), metadata={"format": "pt"})
    for file in CODE.glob("*_modegpt.py"):
        shutil.copy(file, dst)


def wrap_dense(src, dst):
    """Writes the dense model in `src` as a modegpt folder of full widths; returns the dense model."""
    dense, base = load_dense(src)
    config = shared_config(base, dense)
    write_folder(dst, config, dense_layers(config), stored_state(dense))
    return dense


def load_out(out_dir):
    """Loads a modegpt folder as a user does, and demands that every tensor found its place."""
    config = AutoConfig.from_pretrained(out_dir, trust_remote_code=True)
    require(config.model_type == "modegpt", f"expected model_type modegpt, found {config.model_type}")
    model, info = AutoModelForCausalLM.from_pretrained(out_dir, trust_remote_code=True, output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        require(not info[kind], f"expected no {kind.replace('_', ' ')}, found {info[kind]}")
    return model.float().eval()


# ---- comparisons ----


def logits_of(model, ids, **kwargs):
    with torch.no_grad():
        return model(ids, **kwargs).logits


def check(out_dir, ids, expected_logits=None, tolerance=OTHER_RUNTIME):
    """Everything a user may do with the folder: load, score, generate, pad, save again."""
    model = load_out(out_dir)
    if expected_logits is not None:
        close("logits", logits_of(model, ids), expected_logits.float(), tolerance)
    check_cache(model, ids)
    check_generation(model, ids)
    check_left_padding(model, ids)
    check_outputs(model, ids)
    check_save(model, ids)


def check_cache(model, ids):
    """Tokens fed in two pieces and then one by one give the logits of all at once."""
    first, second, cache, pieces = ids.shape[1] // 3, ids.shape[1] // 2, None, []
    for start, end in [(0, first), (first, second), *((i, i + 1) for i in range(second, ids.shape[1]))]:
        with torch.no_grad():
            output = model(ids[:, start:end], past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        pieces.append(output.logits)
    close("cached in pieces", torch.cat(pieces, dim=1), logits_of(model, ids), SAME_ARITHMETIC)


def generate(model, ids, mask=None, **kwargs):
    mask = torch.ones_like(ids) if mask is None else mask
    lengths = {"max_new_tokens": 12, "min_new_tokens": 12}
    return model.generate(
        ids, attention_mask=mask, do_sample=False, pad_token_id=pad_token(model), **lengths, **kwargs
    )[:, ids.shape[1] :]


def pad_token(model):
    return 0 if model.config.pad_token_id is None else model.config.pad_token_id


def check_generation(model, ids):
    prompt = ids[:, : ids.shape[1] // 2]
    for name, search in (("greedy", {}), ("beam", {"num_beams": 3})):
        cached, uncached = (generate(model, prompt, use_cache=use_cache, **search) for use_cache in (True, False))
        require(
            torch.equal(cached, uncached),
            f"{name}: expected the same tokens with and without cache, found {cached.tolist()} and {uncached.tolist()}",
        )
    print(f"  generation: {cached.numel()} tokens equal with and without cache, greedy and beam")


def check_left_padding(model, ids):
    """A short prompt beside a long one in a batch keeps its logits and its continuation."""
    long, short = ids[:1], ids[:1, : ids.shape[1] // 2]
    n_pad = long.shape[1] - short.shape[1]
    padded = torch.cat((torch.full((1, n_pad), pad_token(model)), short), dim=1)
    batch, mask = torch.cat((long, padded)), torch.ones(2, long.shape[1], dtype=torch.long)
    mask[1, :n_pad] = 0
    logits = logits_of(model, batch, attention_mask=mask)
    close("long row of a padded batch", logits[:1], logits_of(model, long), SAME_ARITHMETIC)
    close("padded row", logits[1:, n_pad:], logits_of(model, short), SAME_ARITHMETIC)
    # Both rows, so that neither a wrong mask nor wrong positions can hide; context must leave room for new tokens.
    together = generate(model, batch[:, 12:], mask[:, 12:])
    alone = torch.cat((generate(model, long[:, 12:]), generate(model, padded[:, 12:][:, mask[1, 12:] == 1])))
    require(
        torch.equal(together, alone),
        f"left padding: expected continuation {alone.tolist()}, found {together.tolist()}",
    )


def check_outputs(model, ids):
    """The smaller promises of a causal model: loss, hidden states, tuple output, embeddings as input."""
    with torch.no_grad():
        output = model(ids, labels=ids, output_hidden_states=True)
        embeds = model.get_input_embeddings()(ids)
        from_embeds = model(inputs_embeds=embeds).logits
        as_tuple = model(ids, return_dict=False)
        last = model(ids, logits_to_keep=1).logits
    losses = -output.logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])
    close("loss", output.loss, losses.mean(), SAME_ARITHMETIC)
    close("from embeddings", from_embeds, output.logits, SAME_ARITHMETIC)
    close("tuple", as_tuple[0], output.logits, SAME_ARITHMETIC)
    close("last token only", last, output.logits[:, -1:], SAME_ARITHMETIC)
    n_states = model.config.num_hidden_layers + 1
    require(len(output.hidden_states) == n_states, f"expected {n_states} states, found {len(output.hidden_states)}")


def check_save(model, ids):
    """`save_pretrained` writes a folder that loads by itself, with the same configuration and bits."""
    with tempfile.TemporaryDirectory() as again:
        model.save_pretrained(again)
        reloaded = load_out(again)
    for name in ("layer_shapes", "base_config", "head_dim", "num_key_value_heads", "eos_token_id", "pad_token_id"):
        expected, found = getattr(model.config, name), getattr(reloaded.config, name)
        require(expected == found, f"saved again: expected `{name}` {expected}, found {found}")
    expected, found = model.state_dict(), reloaded.state_dict()
    require(expected.keys() == found.keys(), f"saved again: tensors differ: {sorted(expected.keys() ^ found.keys())}")
    close("saved again", logits_of(reloaded, ids), logits_of(model, ids), 0.0)
    print(f"  saved again: {len(found)} tensors under the same names")


def check_full_width(src):
    """A dense model wrapped without narrowing has the names and the logits of transformers' own class."""
    with tempfile.TemporaryDirectory() as dst:
        dense = wrap_dense(src, dst)
        ids = some_ids(dense.config.vocab_size)
        wrapped = load_out(dst)
        expected, found = dense.state_dict().keys(), wrapped.state_dict().keys()
        require(expected == found, f"full width: tensor names differ: {sorted(expected ^ found)}")
        close("full width", logits_of(wrapped, ids), logits_of(dense, ids), SAME_ARITHMETIC)
        check_hidden_states(wrapped, dense, ids)


def check_hidden_states(wrapped, dense, ids):
    with torch.no_grad():
        found, expected = (model(ids, output_hidden_states=True).hidden_states for model in (wrapped, dense))
    if dense.config.model_type == "opt" and len(found) != len(expected):
        return  # some releases leave out the last state
    worst = max((a - b).abs().max().item() for a, b in zip(found[:-1], expected[:-1]))
    require(worst <= SAME_ARITHMETIC, f"hidden states: expected at most {SAME_ARITHMETIC} apart, found {worst}")


def check_narrowed(src, seed):
    """Sliced weights in a modegpt folder equal the dense model with the dropped coordinates set to zero.

    This fixes what widths, rotary pairs, groups of heads and the softmax scale mean, without the Rust side.
    """
    dense, base = load_dense(src)
    config = shared_config(base, dense)
    family, ids = FAMILIES[base["model_type"]], some_ids(config["vocab_size"])
    sliced, zeroed, layers = narrow(family, config, dense_layers(config), stored_state(dense), seed)
    full = logits_of(dense, ids)
    dense.load_state_dict(zeroed, strict=False)
    expected = logits_of(dense, ids)
    moved = (expected - full).abs().max().item()
    require(moved > 100 * SAME_ARITHMETIC, f"narrowing moved no logit by more than {moved}, which proves nothing")
    with tempfile.TemporaryDirectory() as dst:
        write_folder(dst, config, layers, sliced)
        check(dst, ids, expected, SAME_ARITHMETIC)


def check_factorised(src, seed):
    """Maps as products give the logits of the dense model at full rank, and of their products at any other."""
    dense, base = load_dense(src)
    config = shared_config(base, dense)
    family, ids, state = FAMILIES[base["model_type"]], some_ids(config["vocab_size"]), stored_state(dense)
    layers = dense_layers(config)
    expected = logits_of(dense, ids)
    factored, _, shapes = factorise(family, config, layers, state, lambda index, name, full: full)
    with tempfile.TemporaryDirectory() as dst:
        write_folder(dst, config, shapes, factored)
        close("factorised at full rank", logits_of(load_out(dst), ids), expected, SAME_ARITHMETIC)
    factored, product, shapes = factorise(family, config, layers, state, uneven(seed))
    dense.load_state_dict(product, strict=False)
    multiplied = logits_of(dense, ids)
    moved = (multiplied - expected).abs().max().item()
    require(moved > 100 * SAME_ARITHMETIC, f"truncation moved no logit by more than {moved}, which proves nothing")
    with tempfile.TemporaryDirectory() as dst:
        write_folder(dst, config, shapes, factored)
        print("  factorised at uneven ranks:")
        check(dst, ids, multiplied, SAME_ARITHMETIC)


def check_refusals(src):
    """Configurations that cannot be right are named, not run."""
    with tempfile.TemporaryDirectory() as dst:
        wrap_dense(src, dst)
        file = pathlib.Path(dst) / "config.json"
        written = json.loads(file.read_text())
        layers = written["per_layer_config"]
        wrong = {
            "base_config": {"base_config": {**written["base_config"], "model_type": "bert"}},
            f"expected {len(layers)} layers": {"per_layer_config": layers[1:]},
            "intermediate_size": {"per_layer_config": [{**layers[0], "intermediate_size": 0}, *layers[1:]]},
            "needs `rotary_pairs`": {"per_layer_config": [{**layers[0], "query_key_dim": 2}, *layers[1:]]},
            "of 4 heads": {"per_layer_config": [{**layers[0], "rotary_pairs": [[0]]}, *layers[1:]]},
            "a rank of `up` from 1 to 64, found 0": {"per_layer_config": [{**layers[0], "ranks": {"up": 0}}, *layers[1:]]},
            "a rank of `key` from 1 to 32, found 33": {
                "per_layer_config": [{**layers[0], "ranks": {"key": 33, "query": None}}, *layers[1:]]
            },
            "found `w1`": {"per_layer_config": [{**layers[0], "ranks": {"w1": 3}}, *layers[1:]]},
            "below 4": {"per_layer_config": [{**layers[0], "rotary_pairs": [[0, 1, 2, 4]] * 4}, *layers[1:]]},
        }
        for message, change in wrong.items():
            file.write_text(json.dumps({**written, **change}))
            try:
                AutoConfig.from_pretrained(dst, trust_remote_code=True)
            except ValueError as error:
                require(message in str(error), f"refusal: expected `{message}`, found `{error}`")
            else:
                raise Failure(f"refusal: expected an error with `{message}`, found none")
    print(f"  {len(wrong)} wrong configurations refused")


# ---- command line ----


def some_ids(vocab_size, tokens=48):
    return torch.randint(3, vocab_size, (2, tokens), generator=torch.Generator().manual_seed(0))


def self_test():
    sources = [DATA / "models" / name for name in REAL_MODELS]
    for src in sources:
        require(src.is_dir(), f"expected the model folder {src}; set MODEGPT_DATA")
    with tempfile.TemporaryDirectory() as made:
        for name, make in RANDOM_MODELS.items():
            model = make()
            if model is None:
                print(f"{name}: not known to transformers {transformers.__version__}")
                continue
            model.save_pretrained(pathlib.Path(made) / name)
            sources.append(pathlib.Path(made) / name)
        for seed, src in enumerate(sources):
            print(src.name)
            check_full_width(src)
            check_narrowed(src, seed)
            check_factorised(src, seed)
    print("refusals")
    check_refusals(DATA / "models" / "stories260k")


def check_pair(dense_dir, out_dir, logits_file, ids_file):
    print(f"{dense_dir} at full width")
    check_full_width(dense_dir)
    config = AutoConfig.from_pretrained(out_dir, trust_remote_code=True)
    ids = some_ids(config.vocab_size)
    if ids_file is not None:
        ids = torch.tensor(json.loads(pathlib.Path(ids_file).read_text()))
    ids = ids if ids.dim() == 2 else ids[None]
    expected = None if logits_file is None else load_file(logits_file)["logits"]
    if expected is not None and expected.dim() == 2:
        expected = expected[None]
    print(out_dir)
    check(out_dir, ids, expected)
    dense, out = load_dense(dense_dir)[0], load_out(out_dir)
    names, found = dense.state_dict().keys(), {original_name(name) for name in out.state_dict()}
    require(names == found, f"tensor names differ from the dense model: {sorted(names ^ found)}")
    print(f"  parameters: {dense.num_parameters()} before, {out.num_parameters()} after")


def original_name(name):
    """The tensor of the dense model that a tensor, or a factor of it, stands for."""
    for part in (".a", ".b"):
        name = name.replace(f"{part}.weight", ".weight").replace(f"{part}.bias", ".bias")
    for part in (".query", ".key", ".value"):
        name = name.replace(f".c_attn{part}.", ".c_attn.")
    return name


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dense_dir", nargs="?")
    parser.add_argument("out_dir", nargs="?")
    parser.add_argument("--logits")
    parser.add_argument("--ids")
    args = parser.parse_args()
    if (args.dense_dir is None) != (args.out_dir is None):
        parser.error("expected both DENSE_DIR and OUT_DIR, or neither")
    if args.logits is not None and args.ids is None:
        parser.error("--logits needs --ids")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    try:
        if args.out_dir is None:
            self_test()
        else:
            check_pair(args.dense_dir, args.out_dir, args.logits, args.ids)
    except Failure as failure:
        print(f"FAILED: {failure}", file=sys.stderr)
        return 1
    print("passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
