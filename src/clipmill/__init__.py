"""Python API of clipmill: CLIP encoders from quality captions, for dense tasks and serving.

Each name is imported when it is first used, so that ``import clipmill`` takes no time:

* data: :class:`Dataset`, :func:`read_sample`, :class:`PairDataset`, :class:`ViewConfig`,
  :func:`write_dataset`, :class:`ShardConfig`
* weights: :func:`load_encoder`, :func:`load_clip`
* training: :func:`pretrain_clip`, :class:`PretrainConfig`, :class:`MixtureSource`,
  :func:`finetune`, :class:`FinetuneConfig`, :func:`get_recipe`, :func:`list_recipes`
* results: :func:`evaluate`, :func:`read_evaluation`, :class:`Predictor`
* serving: :class:`ServerProcess`, :class:`Client`

Functions that write artifacts take a folder or ``s3://`` URI, ``out`` by default, return the URI of
the artifact, and print nothing. A result that exists is returned at once. Each name has an example.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipmill.data.captioned_images import read_sample
    from clipmill.data.dataset import Dataset
    from clipmill.data.loading.mixture import MixtureSource
    from clipmill.data.loading.pair_dataset import PairDataset
    from clipmill.data.loading.view import ViewConfig
    from clipmill.data.shards.plan import ShardConfig
    from clipmill.data.shards.write import write_dataset
    from clipmill.models.clip import load_clip
    from clipmill.models.image_encoder import load_encoder
    from clipmill.pretrain.clip import pretrain_clip
    from clipmill.pretrain.config import PretrainConfig
    from clipmill.recipes.registry import get_recipe, list_recipes
    from clipmill.serve.client import Client
    from clipmill.serve.launch import ServerProcess
    from clipmill.tasks.evaluation import evaluate, read_evaluation
    from clipmill.tasks.finetune import FinetuneConfig, finetune
    from clipmill.tasks.predictor import Predictor

    __version__: str

__all__ = [
    "Client",
    "Dataset",
    "FinetuneConfig",
    "MixtureSource",
    "PairDataset",
    "Predictor",
    "PretrainConfig",
    "ServerProcess",
    "ShardConfig",
    "ViewConfig",
    "evaluate",
    "finetune",
    "get_recipe",
    "list_recipes",
    "load_clip",
    "load_encoder",
    "pretrain_clip",
    "read_evaluation",
    "read_sample",
    "write_dataset",
]

_MODULES = {
    "Client": "serve.client",
    "Dataset": "data.dataset",
    "FinetuneConfig": "tasks.finetune",
    "MixtureSource": "data.loading.mixture",
    "PairDataset": "data.loading.pair_dataset",
    "Predictor": "tasks.predictor",
    "PretrainConfig": "pretrain.config",
    "ServerProcess": "serve.launch",
    "ShardConfig": "data.shards.plan",
    "ViewConfig": "data.loading.view",
    "evaluate": "tasks.evaluation",
    "finetune": "tasks.finetune",
    "get_recipe": "recipes.registry",
    "list_recipes": "recipes.registry",
    "load_clip": "models.clip",
    "load_encoder": "models.image_encoder",
    "pretrain_clip": "pretrain.clip",
    "read_evaluation": "tasks.evaluation",
    "read_sample": "data.captioned_images",
    "write_dataset": "data.shards.write",
}
"""Module of each public name, below this package."""


def __getattr__(name: str) -> Any:
    """Return a public name, imported now, or ``__version__`` (40 ms, so not at import either).

    Raises:
        AttributeError: there is no such name.
    """
    if name == "__version__":
        from clipmill.version import clipmill_version

        return clipmill_version()
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names, also those that weren't imported yet."""
    return sorted({*globals(), *__all__, "__version__"})
