"""Writes the PyTorch files of this folder, and what they hold. Run with torch 1.13 (any since 1.6 will do)."""

import collections
import json
import pathlib

import torch

HERE = pathlib.Path(__file__).parent
NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64",
         torch.int64: "I64", torch.bool: "BOOL", torch.uint8: "U8"}


def tensors():
    matrix = torch.arange(12.0).reshape(3, 4) / 8 - 0.5
    cube = torch.arange(24.0).reshape(2, 3, 4)
    return collections.OrderedDict(
        matrix=matrix,
        transposed=matrix.t(),
        row=matrix[1],
        column=matrix[:, 2],
        block=matrix[1:, 1:3],
        cube=cube.permute(2, 0, 1),
        sparse_cube=cube[::1, ::2, ::3],
        half=torch.tensor([1.0, -2.5, 65504.0]).half(),
        brain=torch.tensor([[1.0, -2.5], [3.0e38, 0.0]]).bfloat16().t(),
        double=torch.tensor([0.1, -1e300, 2.0], dtype=torch.float64)[::2],
        scalar=torch.tensor(3.5),
        empty=torch.zeros(0, 3),
        parameter=torch.nn.Parameter(torch.ones(2, 2)),
        position_ids=torch.arange(5).expand((1, -1)),
        mask=torch.tensor([True, False, True]),
    )


def describe(state):
    return {
        name: {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "values": tensor.double().flatten().tolist()}
        for name, tensor in state.items()
    }


def save(folder, value, name="pytorch_model.bin", **options):
    (HERE / folder).mkdir(exist_ok=True)
    torch.save(value, HERE / folder / name, **options)


state = tensors()
save("zip", state)
save("legacy", state, _use_new_zipfile_serialization=False)
save("protocol4", state, pickle_protocol=4)
save("nested", {"epoch": 3, "loss": 0.25, "names": ["a", ("b", None)], "state_dict": {"matrix": state["matrix"]}})
module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
for place, parameter in enumerate(module.parameters()):
    torch.nn.init.constant_(parameter, place + 0.5)
save("module", module.state_dict(), _use_new_zipfile_serialization=False)

names = list(state)
shards = {f"pytorch_model-0000{i + 1}-of-00002.bin": names[i::2] for i in range(2)}
for shard, held in shards.items():
    save("sharded", {k: state[k] for k in held}, shard)
index = {"metadata": {"total_size": 0}, "weight_map": {k: shard for shard, held in shards.items() for k in held}}
(HERE / "sharded" / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=1))

expected = {"tensors": describe(state), "module": describe(module.state_dict())}
(HERE / "expected.json").write_text(json.dumps(expected))
