"""Credentials that a role gives for an hour or so, fetched and renewed by each process itself.

The order in which Amazon's own clients look: keys in the environment, a web identity (IRSA, or
any other issuer), a credentials file, a container's role (ECS, EKS Pod Identity), an instance's
role. One is chosen by what the environment holds; where it fails there's no falling back to the
next, whose rights would be other ones.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

import urllib3
from minio.credentials.credentials import Credentials
from minio.credentials.providers import AWSConfigProvider, IamAwsProvider, Provider

from clipmill.errors import StorageError

Role = Literal["web identity", "container", "profile", "instance"]

_VARIABLES: Final[Mapping[Role, str]] = {
    "web identity": "AWS_WEB_IDENTITY_TOKEN_FILE, AWS_ROLE_ARN and AWS_ENDPOINT_URL_STS",
    "container": "AWS_CONTAINER_CREDENTIALS_FULL_URI or _RELATIVE_URI, and its token",
    "profile": "AWS_SHARED_CREDENTIALS_FILE and AWS_PROFILE",
}
# A machine that isn't Amazon's should learn so soon: nobody answers there.
_INSTANCE_TIMEOUT: Final = urllib3.Timeout(connect=1.0, read=5.0)


def find_role(environment: Mapping[str, str]) -> Role | None:
    """The role that this environment tells of; None where it tells of none."""
    if environment.get("AWS_WEB_IDENTITY_TOKEN_FILE"):
        return "web identity"
    shared = environment.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials"
    if environment.get("AWS_PROFILE") or Path(shared).expanduser().is_file():
        return "profile"
    uris = (f"AWS_CONTAINER_CREDENTIALS_{kind}_URI" for kind in ("RELATIVE", "FULL"))
    if any(environment.get(name) for name in uris):
        return "container"
    is_amazon = not environment.get("AWS_ENDPOINT_URL")
    if is_amazon and environment.get("AWS_EC2_METADATA_DISABLED", "").lower() != "true":
        return "instance"
    return None


class RoleProvider(Provider):
    """What minio's client asks before each request; it is kept until shortly before it ends.

    Reads the process's environment. Raises StorageError where the role gives no credentials.
    """

    def __init__(self, role: Role, http: urllib3.PoolManager) -> None:
        self._role = role
        self._provider = _provider(role, http)

    def retrieve(self) -> Credentials:
        """Return credentials that are valid now."""
        try:
            return self._provider.retrieve()
        # What the library raises for answers that it can't read, too; its words may hold the token.
        except (ValueError, KeyError, TypeError, OSError, urllib3.exceptions.HTTPError) as error:
            what = "no S3 credentials found"
            if self._role == "instance":  # which is tried where nothing was set
                raise StorageError(
                    f"{what}: no keys are set, and this machine has no role",
                    expected="AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or a role",
                    action="export the keys (and AWS_ENDPOINT_URL for a store that isn't Amazon's)",
                ) from None
            raise StorageError(
                f"{what}: the role ({self._role}) gives none ({type(error).__name__})",
                expected="temporary credentials for the S3 store",
                action=f"check {_VARIABLES[self._role]}, and the role's trust policy",
            ) from None


def _provider(role: Role, http: urllib3.PoolManager) -> Provider:
    if role == "profile":
        return AWSConfigProvider()
    if role == "web identity":
        return IamAwsProvider(
            custom_endpoint=os.environ.get("AWS_ENDPOINT_URL_STS"), http_client=http
        )
    if role == "container":
        return IamAwsProvider(http_client=http)
    return IamAwsProvider(
        custom_endpoint=os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT"),
        http_client=urllib3.PoolManager(timeout=_INSTANCE_TIMEOUT, retries=urllib3.Retry(total=1)),
    )
