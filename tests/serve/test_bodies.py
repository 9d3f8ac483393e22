import asyncio
import json
from collections import Counter
from contextlib import suppress

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipmill.serve.config import ServingConfig
from clipmill.serve.errors import BadRequestError
from clipmill.serve.kserve_compat import (
    InferInput,
    InferOutput,
    InferRequest,
    InferResponse,
    RequestedOutput,
)
from clipmill.serve.protocol.bodies import (
    HEADER_LENGTH,
    RequestBody,
    encode_json,
    encode_v2,
    parse_request,
    parse_v2,
)
from clipmill.serve.protocol.request import parse_v1_instances, parse_v2_inputs

PIXELS = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)


def kserve_request(values: np.ndarray, datatype: str, *, binary: bool) -> InferRequest:
    tensor = InferInput("image", list(values.shape), datatype)
    tensor.set_data_from_numpy(values, binary_data=binary)
    wanted = RequestedOutput("classes", {"binary_data": True})
    return InferRequest("seg", [tensor], request_id="7", request_outputs=[wanted])


def test_what_kserves_client_writes_is_read() -> None:
    data, length = kserve_request(PIXELS, "UINT8", binary=True).to_rest()
    request = parse_v2(data, str(length), "seg")
    np.testing.assert_array_equal(request.inputs[0].as_numpy(), PIXELS)
    assert request.id == "7"
    assert [(o.name, o.binary_data) for o in request.request_outputs] == [("classes", True)]

    plain, _ = kserve_request(PIXELS, "UINT8", binary=False).to_rest()
    request = parse_v2(json.dumps(plain).encode(), None, "seg")
    np.testing.assert_array_equal(request.inputs[0].as_numpy(), PIXELS)


def test_binary_bytes_stay_bytes() -> None:
    # KServe's own reader makes text of them and fails: the reason why this one exists.
    jpeg = b"\xff\xd8\xff\xe0"
    data, length = kserve_request(np.array([jpeg], object), "BYTES", binary=True).to_rest()
    assert parse_v2(data, str(length), "seg").inputs[0].as_numpy().tolist() == [jpeg]


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize(("dtype", "datatype"), [(np.uint8, "UINT8"), (np.float32, "FP32")])
def test_what_is_written_kserves_client_reads(binary: bool, dtype: type, datatype: str) -> None:
    values = (np.arange(12) / 3).astype(dtype).reshape(2, 2, 3)
    output = InferOutput("out", list(values.shape), datatype, data=values)
    response = InferResponse("7", "seg", [output], parameters={"digest": "abc"})
    body = encode_v2(response, binary={"out"} if binary else (), max_bytes=1000)
    length = int(body.headers.get(HEADER_LENGTH, len(body.data)))
    assert (length < len(body.data)) == binary
    found = InferResponse.from_bytes(body.data, length)
    np.testing.assert_array_equal(found.outputs[0].as_numpy(), values)
    assert (found.id, found.model_name, found.parameters) == ("7", "seg", {"digest": "abc"})


_GOOD = {"name": "image", "datatype": "UINT8", "shape": [1, 1, 3], "data": [1, 2, 3]}


@pytest.mark.parametrize(
    "request_json",
    [
        [],
        {},
        {"inputs": []},
        {"inputs": "image"},
        {"inputs": [_GOOD] * 4},
        {"inputs": [_GOOD | {"name": 3}]},
        {"inputs": [_GOOD | {"datatype": 3}]},
        {"inputs": [_GOOD | {"shape": [1, -1, 3]}]},
        {"inputs": [_GOOD | {"shape": [1, "1", 3]}]},
        {"inputs": [_GOOD | {"shape": 3}]},
        {"inputs": [_GOOD | {"data": "abc"}]},
        {"inputs": [_GOOD | {"data": None}]},
        {"inputs": [_GOOD | {"data": None, "parameters": {"binary_data_size": 4}}]},
        {"inputs": [_GOOD | {"data": None, "parameters": {"binary_data_size": "0"}}]},
        {"inputs": [_GOOD | {"parameters": []}]},
        {"inputs": [_GOOD], "parameters": 3},
        {"inputs": [_GOOD], "outputs": 3},
        {"inputs": [_GOOD], "outputs": ["classes"]},
    ],
)
def test_a_malformed_v2_request_is_refused(request_json: object) -> None:
    with pytest.raises(BadRequestError):
        parse_v2(json.dumps(request_json).encode(), None, "seg")


@pytest.mark.parametrize("length", ["-1", "1e3", "", "9999", "²", "2"])
def test_a_wrong_header_length_is_refused(length: str) -> None:
    with pytest.raises(BadRequestError):
        parse_v2(json.dumps({"inputs": [_GOOD]}).encode(), length, "seg")


_KEYS = ["inputs", "outputs", "name", "shape", "datatype", "data", "parameters"]
_KEYS += ["binary_data_size", "instances", "image_bytes", "b64"]
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_KEYS), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(_JSON, st.binary(max_size=8))
def test_any_json_is_read_or_refused(value: object, rest: bytes) -> None:
    header = json.dumps(value).encode()
    with suppress(BadRequestError):
        parse_v2_inputs(parse_v2(header + rest, str(len(header)), "seg"), ServingConfig())
    with suppress(BadRequestError):
        body = RequestBody(protocol="v1", data=header, headers={}, query={})
        parse_v1_instances(parse_request(body, "m"), ServingConfig())


def test_parts_of_large_responses_leave_the_event_loop_to_others():
    """A client that takes all at once doesn't keep health probes waiting."""
    from clipmill.serve.server.app import _PART_BYTES, _send_in_parts

    async def respond():
        turns, seen = 0, []
        turn = asyncio.Lock()

        async def send(message):
            seen.append(turns)

        async def probe():
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        probing = asyncio.create_task(probe())
        body = {"type": "http.response.body", "body": bytes(8 * _PART_BYTES)}
        await asyncio.gather(*(_send_in_parts(send, turn)(dict(body)) for _ in range(4)))
        probing.cancel()
        return seen

    seen = asyncio.run(respond())
    assert len(seen) == 32
    # At most a part of each response starts, or follows another, in one turn.
    assert max(Counter(seen).values()) <= 5
    assert seen[-1] - seen[0] >= 24


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32])
@pytest.mark.parametrize("highest", [1, 9, 10])
@pytest.mark.parametrize("shape", [(100_003,), (300, 333), (2, 300, 333), (40_000, 3)])
def test_large_arrays_are_written_as_orjson_writes_them(
    shape: tuple[int, ...], highest: int, dtype: type
) -> None:
    array = np.random.default_rng(0).integers(0, highest + 1, shape).astype(dtype)
    for values in (array, -array if dtype is np.int64 else array[::-1].copy()):
        expected = orjson.dumps({"data": values}, option=orjson.OPT_SERIALIZE_NUMPY)
        assert encode_json({"data": values}, len(expected)) == expected
