"""Addresses of weights, the same for every command, parsed without opening anything.

================================ ==================================================================
address                          weights
================================ ==================================================================
``URI``                          an encoder that clipmill trained or imported: a folder or ``s3://``
``open_clip:NAME/TAG``           pretrained weights that open_clip lists
``timm:NAME[.TAG]``              pretrained weights that timm lists; without TAG its default ones
``hf:ORG/NAME[@REVISION]``       a model repository of the Hugging Face hub
``file:PATH[#LIBRARY/NAME]``     a folder on this machine, or a file of a state dict with its
                                 architecture: ``#timm/NAME[.TAG]``, ``#open_clip/NAME[/TAG]``
``random:LIBRARY/NAME``          random weights of an architecture of ``timm`` or ``open_clip``
================================ ==================================================================
"""

from dataclasses import dataclass
from typing import Final, Literal

from clipmill.errors import ConfigError, did_you_mean

Scheme = Literal["clipmill", "open_clip", "timm", "hf", "file", "random"]
LIBRARIES: Final = ("open_clip", "timm")
FORMS: Final = (
    "the URI of an encoder, open_clip:NAME/TAG, timm:NAME[.TAG], hf:ORG/NAME[@REVISION], "
    "file:PATH[#LIBRARY/NAME] or random:LIBRARY/NAME"
)
_WEIGHTS_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """A parsed address."""

    text: str
    """The address as it was given."""
    scheme: Scheme
    """Source of the weights."""
    name: str
    """URI, architecture, repository or path."""
    tag: str = ""
    """open_clip's or timm's pretrained tag, or a repository's revision."""
    library: str = ""
    """Library of the architecture of a ``file:`` or ``random:`` address."""
    architecture: str = ""
    """Architecture of the weights at a path."""


def parse_address(text: str) -> Address:
    """Parse an address of weights.

    Raises:
        ConfigError: a part is missing, or the form is none of those above.
    """
    scheme, separator, rest = text.partition(":")
    if not text:
        raise ConfigError("the address of the weights is empty", expected=FORMS, action="name one")
    if not separator or rest.startswith("//"):
        if text.endswith(_WEIGHTS_SUFFIXES):
            raise ConfigError(
                f"{text} is a file of weights without a scheme",
                expected=f"file:{text.removeprefix('file://')}",
                action="put file: before the path",
            )
        return Address(text=text, scheme="clipmill", name=text)
    if scheme in LIBRARIES and rest.startswith(("local-dir:", "hf-hub:")):
        kind, _, location = rest.partition(":")
        raise ConfigError(
            f"{text!r} isn't an address that clipmill takes",
            expected=FORMS,
            action=f"write {'file' if kind == 'local-dir' else 'hf'}:{location}",
        )
    if scheme == "open_clip":
        name, _, tag = rest.partition("/")
        return Address(text=text, scheme="open_clip", name=_nonempty(text, name), tag=tag)
    if scheme == "timm":
        name, _, tag = rest.partition(".")
        return Address(text=text, scheme="timm", name=_nonempty(text, name), tag=tag)
    if scheme == "hf":
        name, _, revision = rest.partition("@")
        if rest.startswith((".", "/", "~")):
            raise ConfigError(
                f"{text!r} is a path, and no repository of the Hugging Face hub",
                expected="hf:ORG/NAME[@REVISION], or file:PATH",
                action=f"write file:{rest}",
            )
        if len(name.split("/")) != 2 or not all(name.split("/")):
            raise _address_error(text, "hf:ORG/NAME[@REVISION]")
        return Address(text=text, scheme="hf", name=name, tag=revision)
    if scheme == "file":
        path, _, architecture = rest.partition("#")
        library, name = _library(text, architecture) if architecture else ("", "")
        return Address(
            text=text,
            scheme="file",
            name=_nonempty(text, path),
            library=library,
            architecture=name,
        )
    if scheme == "random":
        library, name = _library(text, rest)
        return Address(text=text, scheme="random", name=name, library=library)
    raise ConfigError(
        f"{text!r} has the unknown scheme {scheme!r}{did_you_mean(scheme, _SCHEMES)}",
        expected=FORMS,
        action="correct the scheme; for a local path with a colon write ./PATH",
    )


_SCHEMES = ("open_clip", "timm", "hf", "file", "random")


def _nonempty(text: str, part: str) -> str:
    if not part:
        raise _address_error(text, FORMS)
    return part


def _library(text: str, architecture: str) -> tuple[str, str]:
    """Split LIBRARY/NAME."""
    library, _, name = architecture.partition("/")
    if library not in LIBRARIES or not name:
        raise _address_error(text, "timm/NAME or open_clip/NAME for the architecture")
    return library, name


def _address_error(text: str, expected: str) -> ConfigError:
    return ConfigError(
        f"{text!r} isn't a complete address of weights",
        expected=expected,
        action="correct the address",
    )
