"""A safetensors file in memory: laid out once, filled at once, hashed and written by others.

Tensors are copied straight to where the file has them, so that a snapshot costs one copy. The
format: https://huggingface.co/docs/safetensors (length of the header, header, data).
"""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ALIGNMENT = 64


class Snapshot:
    """The bytes of a safetensors file that holds these tensors."""

    def __init__(self, tensors: Mapping[str, Tensor], *, pinned: bool = False) -> None:
        # Wide types first: then every tensor starts at a multiple of its own width.
        order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
        places: dict[str, Any] = {}
        at = 0
        for name in order:
            tensor = tensors[name]
            end = at + tensor.numel() * tensor.element_size()
            places[name] = {
                "dtype": _NAMES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [at, end],
            }
            at = end
        header = json.dumps(places).encode()
        header += b" " * (-(8 + len(header)) % _ALIGNMENT)
        start = 8 + len(header)
        file = torch.empty(start + at, dtype=torch.uint8, pin_memory=pinned)
        file[:start] = torch.frombuffer(
            bytearray(len(header).to_bytes(8, "little") + header), dtype=torch.uint8
        )
        self._file = file
        self._views = {
            name: file[start + place["data_offsets"][0] : start + place["data_offsets"][1]]
            .view(tensors[name].dtype)
            .view(tensors[name].shape)
            for name, place in places.items()
        }

    def fits(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether these tensors have the names, types and shapes that it was laid out for."""
        return self._views.keys() == tensors.keys() and all(
            view.dtype == tensors[name].dtype and view.shape == tensors[name].shape
            for name, view in self._views.items()
        )

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the tensors in; returns when their values may change again."""
        for name, view in self._views.items():
            view.copy_(tensors[name].detach(), non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    @property
    def data(self) -> memoryview:
        """The file."""
        return self._file.numpy().data
