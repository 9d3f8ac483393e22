"""Triton's clients. In a process of their own: their messages have the names of KServe's."""

from contextlib import suppress
from typing import Any

import numpy as np
from tritonclient.utils import InferenceServerException

from helpers.conformance_cases import Answer, Case, Refusal, Result, described


def send(protocol: str, address: str, case: Case) -> Result:
    """Send one case with ``tritonclient.http`` or ``tritonclient.grpc``."""
    import importlib

    library = importlib.import_module(f"tritonclient.{protocol}")
    client = library.InferenceServerClient(address)
    try:
        return _infer(library, client, case) if case.call == "infer" else _call(client, case)
    except InferenceServerException as error:
        return Refusal(str(error.status()), error.message())
    finally:
        client.close()


def _infer(library: Any, client: Any, case: Case) -> Answer:
    inputs = []
    for name, (datatype, array) in case.inputs.items():
        tensor = library.InferInput(name, list(array.shape), datatype)
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    outputs = [
        library.InferRequestedOutput(
            name, **({"binary_data": binary} if library.__name__.endswith("http") else {})
        )
        for name, binary in case.outputs.items()
    ]
    parameters = dict(case.parameters)
    # The client has arguments for them, and refuses them among the parameters.
    own = {name: parameters.pop(name) for name in ("priority", "timeout") if name in parameters}
    own |= {name: parameters.pop(name) for name in case.parameters if name.startswith("sequence")}
    answer = client.infer(
        case.model,
        inputs,
        model_version=case.version,
        outputs=outputs or None,
        request_id=case.id,
        parameters=parameters or None,
        **own,
    )
    response = answer.get_response()
    if not isinstance(response, dict):
        names, identity, version = (
            [output.name for output in response.outputs],
            response.id,
            response.model_version,
        )
    else:
        names = [output["name"] for output in response["outputs"]]
        identity, version = response["id"], response["model_version"]
    return Answer({name: _bytes(answer.as_numpy(name)) for name in names}, identity, version)


def _bytes(array: Any) -> Any:
    """Return texts of JSON as the bytes that they are in binary tensors."""
    if array.dtype != object:
        return array
    values = [value.encode() if isinstance(value, str) else value for value in array.ravel()]
    return np.array(values, object).reshape(array.shape)


def _call(client: Any, case: Case) -> Any:
    match case.call:
        case "live":
            return client.is_server_live()
        case "ready":
            return client.is_server_ready()
        case "extensions":
            metadata = client.get_server_metadata()
            return list(metadata["extensions"] if type(metadata) is dict else metadata.extensions)
        case "model_ready":
            # Over gRPC the status is NOT_FOUND, over HTTP the client makes False of any error.
            with suppress(InferenceServerException):
                return client.is_model_ready(case.model, case.version)
            return False
        case "metadata":
            return described(client.get_model_metadata(case.model, case.version))
        case "load":
            return client.load_model(case.model)
        case "unload":
            return client.unload_model(case.model)
    raise ValueError(case.call)
