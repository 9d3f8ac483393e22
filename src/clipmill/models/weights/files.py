"""Files of weights: downloaded from the Hugging Face hub or a URL into their caches, and read.

The hub's own cache, token and settings (``HF_HOME``, ``HF_TOKEN``, ``HF_HUB_OFFLINE``) apply.
Nothing in a file is executed.
"""

import pickle
import urllib.error
import urllib.request
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmill.errors import ArtifactError, NotFoundError
from clipmill.storage import atomic_write

if TYPE_CHECKING:
    from torch import Tensor

_TIMEOUT_SECONDS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class HubFile:
    """A file of a model repository, on this machine."""

    path: Path
    """Path in the cache."""
    revision: str
    """Commit of the repository that it belongs to."""


def hub_file(
    repository: str,
    names: Sequence[str],
    *,
    revision: str = "",
    is_optional: bool = False,
    architecture: str = "",
) -> HubFile | None:
    """Return the first of these files that the repository has; None if it has none of them.

    What the cache has is taken as it is, without asking the hub. An optional file that a cached
    snapshot lacks counts as absent where the hub can't be reached. ``architecture`` is that of a
    file of weights, for the error's advice.

    Raises:
        NotFoundError: no such repository or revision, no access to it, or the file isn't in the
            cache and the hub can't be reached.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    snapshot = _cached_snapshot(repository, revision)
    for name in names if snapshot else ():
        assert snapshot is not None
        if (snapshot / name).is_file():
            return HubFile(path=snapshot / name, revision=snapshot.name)
    url = f"{_endpoint()}/{repository}/resolve/{revision or 'main'}/{names[0]}"
    try:
        _check_reachable()
    except OSError as error:
        if snapshot and is_optional:
            return None
        raise _unreachable_error(url, error, architecture) from error
    for name in names:
        try:
            path = Path(hf_hub_download(repository, name, revision=revision or None))
        except EntryNotFoundError:
            continue
        except GatedRepoError as error:
            raise NotFoundError(
                f"access to {_endpoint()}/{repository} is restricted",
                expected="a token of an account that its owner let in",
                action="accept the license on that page, then run `hf auth login` or set HF_TOKEN",
            ) from error
        except RevisionNotFoundError as error:
            raise NotFoundError(
                f"{_endpoint()}/{repository} has no revision {revision!r}",
                expected="a branch, tag or commit of that repository",
                action="correct what follows the @, or leave it out",
            ) from error
        except (RepositoryNotFoundError, HFValidationError) as error:
            raise NotFoundError(
                f"the Hugging Face hub has no model repository {repository!r}, or it is private",
                expected="ORG/NAME as in the address of the repository's page",
                action="correct the name, or set HF_TOKEN if the repository is private",
            ) from error
        except OSError as error:  # the network, or the server, failed meanwhile
            raise _unreachable_error(url, error, architecture) from error
        # .../snapshots/COMMIT/NAME
        return HubFile(path=path, revision=path.parents[name.count("/")].name)
    return None


def _cached_snapshot(repository: str, revision: str) -> Path | None:
    """Return the cache's folder of the repository's files, if there is one."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(repository, revision=revision or None, local_files_only=True)
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    return Path(folder)


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _check_reachable() -> None:
    """Raise OSError where the hub can't be reached, at once rather than after its retries."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    request = urllib.request.Request(_endpoint(), method="HEAD")  # noqa: S310  # the hub's own URL
    try:
        urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS).close()  # noqa: S310
    except urllib.error.HTTPError:
        return  # it answers


def url_file(url: str, folder: Path, architecture: str) -> Path:
    """Return the file at a URL, from ``folder`` or downloaded into it.

    Raises:
        NotFoundError: it isn't there and can't be downloaded.
    """
    from huggingface_hub import constants

    path = folder / url.rpartition("/")[2]
    if path.is_file():
        return path
    if constants.HF_HUB_OFFLINE:
        raise _unreachable_error(url, OSError("HF_HUB_OFFLINE is set"), architecture)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (
            urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as source,  # noqa: S310  # https
            atomic_write(path) as partial,
            partial.open("wb") as file,
        ):
            while block := source.read(1 << 20):
                file.write(block)
    except OSError as error:
        raise _unreachable_error(url, error, architecture) from error
    return path


def _unreachable_error(url: str, error: Exception, architecture: str) -> NotFoundError:
    """Return the error for a file that is neither cached nor can be downloaded."""
    form = f"file:PATH#{architecture}" if architecture else "file:FOLDER, with its config files"
    return NotFoundError(
        f"{url} isn't in the cache, and can't be downloaded: {_reason(error)}",
        expected="the file in the cache (HF_HOME for the hub), or a network to get it from",
        action=f"download it where there is a network, and give it as {form}",
    )


def _reason(error: Exception) -> str:
    """Return the first line of an error."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


OPENAI_KEYS = ("input_resolution", "context_length", "vocab_size")
"""Numbers that OpenAI's archives, and no others, hold in addition to their weights."""


def read_tensors(path: Path) -> "dict[str, Tensor]":
    """Read a ``.safetensors`` file, a PyTorch state dict or a TorchScript archive, as float32.

    A state dict may lie under ``state_dict`` or ``model``, and its names may begin with
    ``module.``.

    Raises:
        ArtifactError: the file is cut, or holds more than tensors.
    """
    tensors = {k.removeprefix("module."): v for k, v in _read(path).items()}
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}


def _read(path: Path) -> "Mapping[str, Tensor]":
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if is_torchscript(path):
            # TorchScript's code runs only when a module is called, and isn't Python's.
            script = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
            return {str(k): v for k, v in script.state_dict().items()}
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (
        SafetensorError,
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
    ) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ArtifactError(
            f"{path} can't be read as weights: {reason}",
            expected="a complete file that holds tensors and nothing that must be executed",
            action="download it again, or save it as safetensors where it comes from",
        ) from error
    for key in ("state_dict", "model"):  # training checkpoints of open_clip and timm
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(
        isinstance(v, torch.Tensor) for v in content.values()
    ):
        raise ArtifactError(
            f"{path} holds a {type(content).__name__} that isn't weights by name",
            expected="tensors by name, alone or under state_dict",
            action="save the model's state_dict",
        )
    return content


def is_torchscript(path: Path) -> bool:
    """Return whether a file is a TorchScript archive, as OpenAI's are."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def check_fit(
    source: str,
    tensors: "Mapping[str, Tensor]",
    own: "Mapping[str, Tensor]",
    *,
    optional: tuple[str, ...] = (),
) -> None:
    """Refuse tensors that aren't those of a model (ArtifactError).

    ``own`` is the model's state dict; what begins with ``optional`` may be missing from tensors.
    """
    unknown = [k for k in tensors if k not in own]
    missing = [k for k in own if k not in tensors and not k.startswith(optional)]
    shapes = [
        f"{k} {tuple(v.shape)} against {tuple(own[k].shape)}"
        for k, v in tensors.items()
        if k in own and own[k].shape != v.shape
    ]
    if unknown or missing or shapes:
        problems = [
            f"{problem} {', '.join(names[:3])}"
            for problem, names in (
                ("shapes of", shapes),
                ("unknown", unknown),
                ("missing", missing),
            )
            if names
        ]
        raise ArtifactError(
            f"{source} doesn't fit the model: {'; '.join(problems)}",
            expected="a tensor of the same name and shape for each of the model's",
            action="name the architecture that these weights were trained as, or other weights",
        )
