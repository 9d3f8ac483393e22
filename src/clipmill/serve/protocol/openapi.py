"""Descriptions for ``/openapi.json`` of the routes whose bodies FastAPI doesn't parse."""

from typing import Any, Final

_ERROR: Final = {
    "content": {
        "application/json": {
            "schema": {"type": "object", "properties": {"error": {"type": "string"}}}
        }
    }
}


def _error_responses() -> dict[str, Any]:
    meanings = {
        "400": "It can't be understood, or is beyond a limit",
        "404": "No such model or version",
        "413": "The body is too large",
        "503": "Too much to do, stopping, or past the deadline; Retry-After says when to return",
    }
    return {code: {"description": meaning, **_ERROR} for code, meaning in meanings.items()}


_TENSOR: Final = {
    "type": "object",
    "required": ["name", "datatype", "shape"],
    "properties": {
        "name": {"enum": ["image", "text", "labels"]},
        "datatype": {"enum": ["BYTES", "UINT8", "FP32"]},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 1}},
        "data": {"type": "array", "items": {}},
        "parameters": {"type": "object", "properties": {"binary_data_size": {"type": "integer"}}},
    },
}
_PARAMETERS: Final = {
    "type": "object",
    "properties": {
        "output": {"enum": ["raw", "float16", "png", "rle"]},
        "top_k": {"type": "integer"},
        "threshold": {"type": "number", "minimum": 0, "maximum": 1},
        "template": {"type": "string"},
        "deadline_milliseconds": {"type": "integer"},
        "binary_data_output": {"type": "boolean"},
    },
}

INFER: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["inputs"],
                    "properties": {
                        "id": {"type": "string"},
                        "inputs": {"type": "array", "items": _TENSOR},
                        "parameters": _PARAMETERS,
                    },
                }
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "image/*": {"schema": {"type": "string", "format": "binary"}},
        },
    },
    "responses": _error_responses(),
}
"""V2's route."""

PREDICT: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["instances"],
                    "properties": {
                        "instances": {"type": "array", "items": {"type": "object"}},
                        "labels": {"type": "array", "items": {"type": "string"}},
                        "parameters": _PARAMETERS,
                    },
                }
            }
        },
    },
    "responses": _error_responses(),
}
"""V1's route."""
