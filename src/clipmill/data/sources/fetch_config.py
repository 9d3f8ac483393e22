"""Limits of fetching images by URL, and opt-outs that are respected."""

from dataclasses import dataclass

from clipmill.config import Config, runtime_field
from clipmill.errors import ConfigError
from clipmill.version import clipmill_version


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchConfig(Config):
    """Limits and manners of fetching; those of pace leave a source's digest alone."""

    concurrency: int = runtime_field(64)
    """Requests at once in a process."""
    per_host: int = runtime_field(8)
    """Requests at once to a host, of a process."""
    connect_timeout: float = runtime_field(5.0)
    """Seconds to connect, TLS apart."""
    read_timeout: float = runtime_field(10.0)
    """Seconds without a byte."""
    total_timeout: float = runtime_field(30.0)
    """Seconds for one attempt, redirects included."""
    attempts: int = runtime_field(3)
    """Attempts per URL where the server or the network fails."""
    max_wait: float = runtime_field(60.0)
    """Longest wait before another attempt, seconds. A row whose server asks for a longer one, by
    ``Retry-After``, fails at once."""
    max_bytes: int = 32 * 2**20
    """Largest response, bytes."""
    max_redirects: int = 5
    """Redirects that are followed."""
    respect_robots: bool = True
    """Read robots.txt, and keep its rules."""
    respect_opt_out: bool = True
    """Leave out images with ``X-Robots-Tag: noai``, ``noimageai``, ``noindex`` or
    ``noimageindex``."""
    allow_private: bool = False
    """Fetch from hosts of this machine and of private networks too."""
    user_agent: str = ""
    """``User-Agent`` header; the part before its first slash is the name in robots.txt. Empty for
    clipmill's own."""

    def __post_init__(self) -> None:
        """Refuse zeros, which would fetch nothing (ConfigError)."""
        for name in ("concurrency", "per_host", "attempts", "max_bytes", "total_timeout"):
            if not getattr(self, name):
                raise ConfigError(
                    f"{name} was 0", expected="more than 0", action=f"correct {name}= in the source"
                )
        if not self.agent.isascii() or not self.agent.isprintable():
            raise ConfigError(
                f"user_agent was {self.user_agent!r}",
                expected="printable ASCII characters",
                action="correct user_agent= in the source",
            )

    @property
    def agent(self) -> str:
        """Value of the ``User-Agent`` header."""
        own = f"clipmill/{clipmill_version()} (+https://github.com/clipmill/clipmill)"
        return self.user_agent or own

    @property
    def token(self) -> str:
        """The crawler's name in robots.txt, in lower case."""
        return self.agent.partition("/")[0].strip().lower()
