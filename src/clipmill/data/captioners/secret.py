"""An endpoint's key: read from where it's kept, shown nowhere."""

import os
from pathlib import Path

from clipmill.errors import ConfigError


class Secret:
    """A text that no printed form of it, or of what holds it, shows."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return "Secret(...)"

    def __reduce__(self) -> tuple[object, ...]:
        """Stay in this process."""
        raise TypeError("a secret can't be pickled")

    def reveal(self) -> str:
        """The text itself."""
        return self._text

    def blot(self, text: str) -> str:
        """``text`` with each occurrence of the secret blotted out."""
        return text.replace(self._text, "[key]")


def read_key(variable: str, file: str) -> Secret | None:
    """The key in an environment variable or in a file; None where neither is named.

    Raises ConfigError where there is none, or it can't go into a header.
    """
    if variable:
        key, place = os.environ.get(variable, "").strip(), f"the environment variable {variable}"
    elif file:
        place = f"the file {file}"
        try:
            key = Path(file).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{place} can't be read: {type(error).__name__}",
                expected="a file that holds the endpoint's key and nothing else",
                action="mount the secret there, or correct endpoint.key_file",
            ) from error
    else:
        return None
    if not key or not key.isascii() or not key.isprintable():
        raise ConfigError(
            f"{place} holds no key" if not key else f"{place} holds what can't be a key",
            expected="one line of ASCII characters",
            action="put the endpoint's key there",
        )
    return Secret(key)
