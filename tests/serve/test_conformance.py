"""The cases of the Open Inference Protocol over each client; answers are equal tensor by tensor."""

import asyncio
import base64
import json
import multiprocessing
import struct
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from kserve import InferenceGRPCClient, InferenceRESTClient
from kserve.inference_client import RESTConfig

from clipmill.models.checkpoint import CheckpointMetadata, save_checkpoint
from clipmill.models.towers import build_clip
from clipmill.processes import free_port
from clipmill.serve.kserve_compat import InferInput, InferRequest, RequestedOutput
from clipmill.serve.launch import ServerProcess
from clipmill.tasks.predictor import Predictor
from helpers.conformance_cases import (
    CASES,
    PICTURE,
    Answer,
    Case,
    Refusal,
    Result,
    code,
    described,
    table,
)
from helpers.small_models import save_model
from helpers.tiny_clip import CLIP

_LENGTH = "Inference-Header-Content-Length"
_DTYPES = {"UINT8": np.uint8, "FP16": np.float16, "FP32": np.float32, "INT64": np.int64}
_CONTENTS = {"UINT8": "uint", "FP32": "fp32", "INT64": "int64", "BYTES": "bytes"}
Send = Callable[[Case], Result]


@pytest.fixture(scope="module")
def uris(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("conformance")
    tasks = {"seg": "segmentation", "depth": "depth"}
    tasks |= {task: task for task in ("detection", "classification")}
    models = {name: save_model(str(folder / name), task) for name, task in tasks.items()}
    metadata = CheckpointMetadata(kind="clip", architecture=CLIP.to_json(), recipe={})
    clip = save_checkpoint(str(folder / "clip"), metadata, build_clip(CLIP).state_dict()).uri
    seg = models.pop("seg")
    return {"seg@1": seg, "seg@2": seg, **models, "clip": clip}


@pytest.fixture(scope="module")
def clients(
    uris: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Send]]:
    log_path = tmp_path_factory.mktemp("log") / "server.log"
    port = free_port("127.0.0.1")
    with (
        ServerProcess(uris, log_path=log_path, grpc_port=port) as server,
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool,
    ):
        address = f"{server.host}:{port}"

        clients: dict[str, Send] = {
            "rest_json": partial(over_rest, server.url, is_binary=False),
            "rest_binary": partial(over_rest, server.url, is_binary=True),
            "grpc": partial(over_grpc, address, is_raw=True),
            "grpc_typed": partial(over_grpc, address, is_raw=False),
            "kserve_rest": partial(over_kserve_rest, server.url),
            "kserve_grpc": partial(over_kserve_grpc, address),
        }
        if find_spec("tritonclient"):  # only on Linux
            from helpers.triton_clients import send

            def triton(protocol: str, address: str, case: Case) -> Result:
                return pool.submit(send, protocol, address, case).result(60)

            http_address = f"{server.host}:{server.http_port}"
            clients["triton_http"] = partial(triton, "http", http_address)
            clients["triton_grpc"] = partial(triton, "grpc", address)
        yield clients
    assert "Traceback" not in log_path.read_text(), "clients' mistakes aren't the server's"


def over_rest(url: str, case: Case, *, is_binary: bool) -> Result:
    """The standard library."""
    model = f"/v2/models/{case.model}" + (f"/versions/{case.version}" if case.version else "")
    if case.call != "infer":
        return _rest_call(url, model, case)
    inputs, files = [], []
    for name, (datatype, array) in case.inputs.items():
        tensor = {"name": name, "datatype": datatype, "shape": list(array.shape)}
        if is_binary:
            files.append(_raw(array))
            tensor["parameters"] = {"binary_data_size": len(files[-1])}
        elif datatype == "BYTES":
            tensor["data"] = [_text(value, name) for value in array]
        else:
            tensor["data"] = array.ravel().tolist()
        inputs.append(tensor)
    request = {
        "id": case.id,
        "inputs": inputs,
        "parameters": {**case.parameters, **({"binary_data_output": True} if is_binary else {})},
    }
    if case.outputs:
        request["outputs"] = [
            {"name": name, "parameters": {"binary_data": binary} if is_binary else {}}
            for name, binary in case.outputs.items()
        ]
    header = json.dumps(request).encode()
    headers = {_LENGTH: str(len(header))} if is_binary else {"Content-Type": "application/json"}
    answer = _http(f"{url}{model}/infer", header + b"".join(files), headers)
    if isinstance(answer, Refusal):
        return answer
    body, length = answer
    response, position = json.loads(body[:length]), length
    tensors = {}
    for output in response["outputs"]:
        shape, datatype = output["shape"], output["datatype"]
        if (size := output.get("parameters", {}).get("binary_data_size")) is None:
            assert not case.outputs.get(output["name"]) or not is_binary
            array = _parsed(output["data"], datatype)
        else:
            assert case.outputs.get(output["name"], is_binary)
            array = _unpacked(body[position : position + size], datatype)
            position += size
        tensors[output["name"]] = array.reshape(shape)
    assert position == len(body)
    return Answer(tensors, response["id"], response["model_version"])


def _rest_call(url: str, model: str, case: Case) -> Result:
    match case.call:
        case "live" | "ready" as name:
            return bool(json.loads(_http(f"{url}/v2/health/{name}")[0])[name])
        case "extensions":
            return list(json.loads(_http(f"{url}/v2")[0])["extensions"])
        case "model_ready":
            return not isinstance(_http(f"{url}{model}/ready"), Refusal)
        case "metadata":
            return described(json.loads(_http(url + model)[0]))
        case "load" | "unload" as name:
            answer = _http(f"{url}/v2/repository/models/{case.model}/{name}", b"{}")
            return answer if isinstance(answer, Refusal) else True
    raise AssertionError(case.call)


def _http(url: str, body: bytes | None = None, headers: Any = None) -> Any:
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, body, headers or {}), timeout=60
        ) as response:
            data = response.read()
            return data, int(response.headers.get(_LENGTH, len(data)))
    except urllib.error.HTTPError as error:
        return Refusal(str(error.code), error.read().decode())


def _text(value: bytes, name: str) -> str:
    return base64.b64encode(value).decode() if name == "image" else value.decode()


def _raw(array: np.ndarray) -> bytes:
    if array.dtype != object:
        return array.tobytes()
    return b"".join(struct.pack("<I", len(value)) + value for value in array)


def _parsed(data: list[Any], datatype: str) -> np.ndarray:
    """Elements of JSON, where files are base64."""
    if datatype != "BYTES":
        return np.array(data, _DTYPES[datatype])
    array = np.empty(len(data), object)
    array[:] = [
        base64.b64decode(text) if text.startswith("iVBOR") else text.encode() for text in data
    ]
    return array


def _unpacked(data: bytes, datatype: str) -> np.ndarray:
    if datatype != "BYTES":
        return np.frombuffer(data, _DTYPES[datatype])
    values = []
    while data:
        (length,) = struct.unpack_from("<I", data)
        values.append(data[4 : 4 + length])
        data = data[4 + length :]
    array = np.empty(len(values), object)
    array[:] = values
    return array


def over_grpc(address: str, case: Case, *, is_raw: bool) -> Result:
    """A channel, and the messages that the server's reflection describes."""
    with grpc.insecure_channel(address) as channel:
        pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        service = pool.FindServiceByName("inference.GRPCInferenceService")

        def call(name: str, /, **fields: Any) -> Any:
            method = service.methods_by_name[name]
            request = message_factory.GetMessageClass(method.input_type)(**fields)
            send = channel.unary_unary(
                f"/{service.full_name}/{name}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=message_factory.GetMessageClass(
                    method.output_type
                ).FromString,
            )
            return send(request, timeout=60)

        try:
            return _grpc_call(call, case) if case.call != "infer" else _infer(call, case, is_raw)
        except grpc.RpcError as error:
            return Refusal(error.code().name, error.details())


def _grpc_call(call: Any, case: Case) -> Result:
    match case.call:
        case "live":
            return bool(call("ServerLive").live)
        case "ready":
            return bool(call("ServerReady").ready)
        case "extensions":
            return list(call("ServerMetadata").extensions)
        case "model_ready":
            with suppress(grpc.RpcError):
                return bool(call("ModelReady", name=case.model, version=case.version).ready)
            return False
        case "metadata":
            return described(call("ModelMetadata", name=case.model, version=case.version))
        case "load":
            call("RepositoryModelLoad", model_name=case.model)
        case "unload":
            call("RepositoryModelUnload", model_name=case.model)
    raise AssertionError(case.call)


def _infer(call: Any, case: Case, is_raw: bool) -> Answer:
    inputs = []
    for name, (datatype, array) in case.inputs.items():
        tensor: dict[str, Any] = {"name": name, "datatype": datatype, "shape": array.shape}
        if not is_raw:
            tensor["contents"] = {f"{_CONTENTS[datatype]}_contents": array.ravel().tolist()}
        inputs.append(tensor)
    answer = call(
        "ModelInfer",
        model_name=case.model,
        model_version=case.version,
        id=case.id,
        inputs=inputs,
        outputs=[{"name": name} for name in case.outputs],
        parameters={name: {_field(value): value} for name, value in case.parameters.items()},
        raw_input_contents=[_raw(array) for _, array in case.inputs.values()] if is_raw else [],
    )
    tensors = {}
    for number, output in enumerate(answer.outputs):
        if answer.raw_output_contents:
            assert is_raw or output.datatype == "FP16"
            array = _unpacked(answer.raw_output_contents[number], output.datatype)
        else:
            data = list(getattr(output.contents, f"{_CONTENTS[output.datatype]}_contents"))
            array = np.array(data, _DTYPES.get(output.datatype, object))
        tensors[output.name] = array.reshape(output.shape)
    return Answer(tensors, answer.id, answer.model_version)


def _field(value: Any) -> str:
    names = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
    return names[type(value)]


def _kserve_request(case: Case, *, is_rest: bool) -> InferRequest:
    inputs = []
    for name, (datatype, array) in case.inputs.items():
        tensor = InferInput(name, list(array.shape), datatype)
        tensor.set_data_from_numpy(array, binary_data=True)
        inputs.append(tensor)
    outputs = [
        RequestedOutput(name, {"binary_data": binary} if is_rest else None)
        for name, binary in case.outputs.items()
    ]
    parameters = {**case.parameters, **({"binary_data_output": True} if is_rest else {})}
    return InferRequest(
        case.model,
        inputs,
        request_id=case.id,
        parameters=parameters,
        request_outputs=outputs,
        model_version=case.version or None,
    )


def _kserve_answer(response: Any) -> Answer:
    tensors = {}
    for output in response.outputs:
        array = output.as_numpy()
        if output.datatype == "BYTES":
            # Over REST the client has turned them into texts.
            values = [v.encode() if isinstance(v, str) else v for v in array.ravel()]
            array = np.array(values, object).reshape(output.shape)
        tensors[output.name] = array
    return Answer(tensors, response.id, response.model_version)


def over_kserve_rest(url: str, case: Case) -> Result:
    async def send() -> Result:
        async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
            match case.call:
                case "live":
                    return bool(await client.is_server_live(url))
                case "ready":
                    return bool(await client.is_server_ready(url))
                case "model_ready":
                    return bool(await client.is_model_ready(url, case.model))
            request = _kserve_request(case, is_rest=True)
            return _kserve_answer(await client.infer(url, request, model_name=case.model))

    try:
        return asyncio.run(send())
    except httpx.HTTPStatusError as error:
        return Refusal(str(error.response.status_code), str(error))


def over_kserve_grpc(address: str, case: Case) -> Result:
    async def send() -> Result:
        async with InferenceGRPCClient(address) as client:
            match case.call:
                case "live":
                    return bool(await client.is_server_live())
                case "ready":
                    return bool(await client.is_server_ready())
                case "model_ready":
                    return bool(await client.is_model_ready(case.model))
            return _kserve_answer(await client.infer(_kserve_request(case, is_rest=False)))

    try:
        return asyncio.run(send())
    except grpc.RpcError as error:
        return Refusal(error.code().name, error.details())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_client_gets_the_same(
    clients: dict[str, Send], uris: dict[str, str], case: Case
) -> None:
    able = [client for client in clients if client not in case.unable]
    results = {client: clients[client](case) for client in able}
    for client, result in results.items():
        if case.codes is not None:
            assert isinstance(result, Refusal), client
            assert result.code.removeprefix("StatusCode.") == code(case, client), result
            assert ".py" not in result.message
        elif case.call != "infer":
            assert result == case.expected, client
        else:
            _check_answer(case, client, result, results[able[0]])
    if case.names:
        _check_values(case, results[able[0]], uris)


def _check_answer(case: Case, client: str, result: Result, first: Result) -> None:
    assert isinstance(result, Answer), (client, result)
    assert isinstance(first, Answer)
    assert (tuple(result.tensors), result.id) == (case.names, case.id), client
    if client != "kserve_rest":  # drops it
        assert result.version == (case.version or first.version), client
    for name, array in first.tensors.items():
        assert result.tensors[name].dtype == array.dtype, (client, name)
        np.testing.assert_array_equal(result.tensors[name], array, err_msg=f"{client} {name}")


def _check_values(case: Case, answer: Result, uris: dict[str, str]) -> None:
    """The numbers are the library's own, where the case leaves them as they are."""
    if case.model == "clip" or case.parameters.keys() & {"output", "top_k"}:
        return
    assert isinstance(answer, Answer)
    (uri,) = {uri for key, uri in uris.items() if key.partition("@")[0] == case.model}
    (expected,) = Predictor.open(uri).predict([PICTURE])
    if "threshold" in case.parameters:
        is_likely = expected["scores"] >= 0.4
        assert 0 < is_likely.sum() < len(is_likely)
        expected = {name: array[is_likely] for name, array in expected.items()}
    is_one = len(case.inputs["image"][1].shape) == 3
    for name in answer.tensors.keys() & expected.keys():
        array = answer.tensors[name]
        if case.model in {"seg", "depth"}:
            array = array[0] if array.ndim == 3 else array[: PICTURE[..., 0].size].reshape(48, 64)
        elif case.model == "classification":
            array = array[0]
        np.testing.assert_allclose(array, expected[name], rtol=1e-5, err_msg=f"{name} {is_one}")


def test_a_parameter_without_a_value_is_refused(clients: dict[str, Send]) -> None:
    """Only a client with other messages than the server's can send one."""
    channel_of = clients["grpc"]
    assert isinstance(channel_of, partial)
    with grpc.insecure_channel(channel_of.args[0]) as channel:
        # ModelInferRequest: model_name = 1, and an entry of parameters = 4, "top_k", whose value
        # holds field 9, which no version of the protocol has.
        entry = b"\x0a\x05top_k" + b"\x12\x02" + b"\x48\x05"
        data = b"\x0a\x03seg" + b"\x22" + bytes([len(entry)]) + entry
        send = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as refusal:
            send(data, timeout=60)
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "'top_k' has no value" in refusal.value.details()


def test_the_documented_table_is_that_of_the_cases() -> None:
    page = Path(__file__).parents[2] / "docs" / "serving.md"
    assert table() in page.read_text(), "insert what tests/helpers/conformance_cases.py prints"
