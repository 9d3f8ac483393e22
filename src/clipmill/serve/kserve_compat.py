"""KServe's classes; the only importer of KServe.

Its ``ModelServer`` parses ``sys.argv`` when it is imported, and would end the process over an
option of ours, so it gets to see none.
"""

import sys

_arguments = sys.argv
sys.argv = sys.argv[:1]
try:
    from kserve import InferInput, InferOutput, InferRequest, InferResponse, Model, ModelServer
    from kserve.errors import InvalidInput, ModelNotFound, ModelNotReady, ServerNotReady
    from kserve.model_repository import ModelRepository
    from kserve.model_server import app
    from kserve.protocol.dataplane import DataPlane
    from kserve.protocol.grpc.grpc_predict_v2_pb2 import DESCRIPTOR as GRPC_DESCRIPTOR
    from kserve.protocol.infer_type import RequestedOutput
    from kserve.protocol.model_repository_extension import ModelRepositoryExtension
finally:
    sys.argv = _arguments

__all__ = [
    "GRPC_DESCRIPTOR",
    "DataPlane",
    "InferInput",
    "InferOutput",
    "InferRequest",
    "InferResponse",
    "InvalidInput",
    "Model",
    "ModelNotFound",
    "ModelNotReady",
    "ModelRepository",
    "ModelRepositoryExtension",
    "ModelServer",
    "RequestedOutput",
    "ServerNotReady",
    "app",
]
