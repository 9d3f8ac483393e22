"""gRPC messages of the Open Inference Protocol, as KServe's types.

KServe's messages lack two of the protocol's types of parameters, ``double_param`` and
``uint64_param``: a parameter of such a type would be lost without an error. So the messages are
built here, from KServe's description and those two fields, in a pool of their own.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from numpy.typing import NDArray

from clipmill.serve.errors import BadRequestError, RejectReason
from clipmill.serve.kserve_compat import (
    GRPC_DESCRIPTOR,
    InferInput,
    InferRequest,
    InferResponse,
    RequestedOutput,
)
from clipmill.serve.protocol.bodies import length_prefixed

_FIELD: Final = descriptor_pb2.FieldDescriptorProto
_ADDED: Final = (
    ("double_param", 4, _FIELD.TYPE_DOUBLE),
    ("uint64_param", 5, _FIELD.TYPE_UINT64),
)
_CONTENTS: Final = {
    "UINT8": "uint_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "BYTES": "bytes_contents",
}
"""Field of a tensor's elements by datatype; FP16 has none, and is raw."""
_MAX_TYPED: Final = 2**18


def _build_pool() -> descriptor_pool.DescriptorPool:
    file = descriptor_pb2.FileDescriptorProto()
    GRPC_DESCRIPTOR.CopyToProto(file)
    (parameter,) = (m for m in file.message_type if m.name == "InferParameter")
    for name, number, kind in _ADDED:
        if number not in {field.number for field in parameter.field}:
            parameter.field.add(
                name=name, number=number, type=kind, label=_FIELD.LABEL_OPTIONAL, oneof_index=0
            )
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return pool


POOL: Final = _build_pool()
"""Descriptions of the messages and their service."""

SERVICE: Final = POOL.FindServiceByName("inference.GRPCInferenceService")
"""Description of the protocol's service."""


def message_type(name: str) -> Any:
    """Return the class of a message, such as ``ModelInferRequest``."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(f"inference.{name}"))


_Response: Final = message_type("ModelInferResponse")


@dataclass(frozen=True, slots=True)
class GrpcBody:
    """A ``ModelInferRequest``."""

    message: Any


def parse_grpc_request(body: GrpcBody) -> InferRequest:
    """Return the request in a message.

    Raises:
        BadRequestError: a parameter has no value of a known type, raw and typed contents are mixed,
            or a shape isn't one.
    """
    message = body.message
    raw = list(message.raw_input_contents)
    if raw and (
        len(raw) != len(message.inputs) or any(t.HasField("contents") for t in message.inputs)
    ):
        raise BadRequestError(
            RejectReason.TENSOR,
            f"there are {len(raw)} 'raw_input_contents' for {len(message.inputs)} inputs; send one "
            "for each input, and no 'contents'",
        )
    return InferRequest(
        model_name=message.model_name,
        model_version=message.model_version,
        request_id=message.id,
        parameters=_parameters(message.parameters),
        infer_inputs=[_tensor(tensor) for tensor in message.inputs],
        raw_inputs=raw,
        from_grpc=True,
        request_outputs=[
            RequestedOutput(name=output.name, parameters=_parameters(output.parameters))
            for output in message.outputs
        ],
    )


def encode_grpc_response(request: InferRequest, response: InferResponse) -> bytes:
    """Return the serialized ``ModelInferResponse``.

    Tensors are raw, or typed where those of the request are; FP16 can only be raw, and many numbers
    are, since writing them one by one would hold the interpreter's lock, for which probes wait.
    """
    message = _Response(
        model_name=response.model_name, model_version=response.model_version, id=response.id
    )
    for name, text in response.parameters.items():
        message.parameters[name].string_param = text
    is_raw = (
        request.use_binary_outputs
        or any(output.datatype not in _CONTENTS for output in response.outputs)
        or sum(output.data.size for output in response.outputs) > _MAX_TYPED
    )
    for output in response.outputs:
        tensor = message.outputs.add(name=output.name, datatype=output.datatype, shape=output.shape)
        if is_raw:
            message.raw_output_contents.append(_raw(output.data))
        else:
            contents = getattr(tensor.contents, _CONTENTS[output.datatype])
            contents.extend(output.data.ravel().tolist())
    serialized: bytes = message.SerializeToString()
    return serialized


def _raw(array: NDArray[Any]) -> bytes:
    if array.dtype == object:
        return b"".join(length_prefixed(value) for value in array.ravel())
    return np.ascontiguousarray(array).tobytes()


def _tensor(tensor: Any) -> InferInput:
    shape = list(tensor.shape)
    if not all(length > 0 for length in shape):
        raise BadRequestError(
            RejectReason.TENSOR, "an input's shape must be a list of numbers above zero"
        )
    field = _CONTENTS.get(tensor.datatype.upper())
    return InferInput(
        name=tensor.name,
        shape=shape,
        datatype=tensor.datatype,
        data=list(getattr(tensor.contents, field)) if field else [],
        parameters=_parameters(tensor.parameters),
    )


def _parameters(parameters: Any) -> dict[str, Any]:
    values = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is None:
            raise BadRequestError(
                RejectReason.PARAMETER,
                f"the parameter {name[:40]!r} has no value, or one of an unknown type; "
                "set one of the fields of InferParameter",
            )
        values[name] = getattr(parameter, choice)
    return values
