"""Node pools and images of an installation: where a job runs, with what, on how much of a node.

The table is ``pools`` in the chart's values, with the images of its registry. The chart installs it
as the ConfigMap ``clipmill-pools``. :func:`load_installation` reads it from the namespace of the
job, or from the file that CLIPMILL_POOLS names. ``pools.json`` next to this file is a copy of the
chart's defaults, written by ``python -m clipmill.pipelines.compile``.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from clipmill.cluster.api import ClusterApi
from clipmill.cluster.constants import POD_SECURITY, VERSION
from clipmill.config import Config
from clipmill.cost import DevicePrice
from clipmill.errors import ClusterError, ConfigError

POOLS_VARIABLE = "CLIPMILL_POOLS"
POOLS_CONFIG_MAP = "clipmill-pools"
"""ConfigMap of the chart with the table."""
POOLS_FILE = "pools.json"
"""Key of the table in the ConfigMap."""
_DEFAULTS = Path(__file__).parent / "pools.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolConfig(Config):
    """A pool of equal nodes."""

    gpus: int = 0
    """GPUs of a node that a job uses; 0 for a pool without."""
    gpu_resource: str = "nvidia.com/gpu"
    """Name under which the GPUs are requested."""
    cpu: float | str = 4
    """Cores of a node that a job uses: a number, or millicores such as ``500m``."""
    memory_gibibytes: int = 16
    """Memory of a node that a job uses, GiB."""
    shared_memory_gibibytes: int = 2
    """Size of ``/dev/shm``, GiB; part of the memory."""
    node_selector: dict[str, str] = field(default_factory=dict)
    """Labels of the pool's nodes."""
    tolerations: tuple[dict[str, str], ...] = ()
    """Taints of the pool's nodes that a job tolerates."""
    fabric: Literal["none", "efa", "infiniband"] = "none"
    """Network between the nodes in addition to the ordinary one."""
    fabric_devices: int = 0
    """Fabric devices of a node that a job uses."""
    device_price: str = ""
    """Price of a GPU's hour, of a core's in a pool without GPUs, such as ``2.50 USD``; empty for
    none."""

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        for name, least in (("gpus", 0), ("memory_gibibytes", 1)):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"{name} of a pool was {getattr(self, name)}",
                    expected=f"at least {least}",
                    action=f"set {name} to {least} or more",
                )
        if isinstance(self.cpu, str) and not re.fullmatch(r"[0-9]+m|[0-9]+(\.[0-9]+)?", self.cpu):
            raise _cpu_error(self.cpu)
        if not self.num_cores > 0:
            raise _cpu_error(self.cpu)
        if self.device_price:
            DevicePrice.parse(self.device_price, "devicePrice of the pool")

    @property
    def num_cores(self) -> float:
        """Cores as a number: 0.5 for ``500m``."""
        text = str(self.cpu)
        return int(text[:-1]) / 1000 if text.endswith("m") else float(text)

    @property
    def cpu_quantity(self) -> str:
        """Cores as Kubernetes writes them: ``4`` or ``500m``."""
        cores = self.num_cores
        return str(int(cores)) if cores == int(cores) else f"{round(cores * 1000)}m"


def _cpu_error(value: object) -> ConfigError:
    return ConfigError(
        f"cpu of a pool was {value!r}",
        expected="a number of cores above 0, or millicores such as 500m",
        action="set cpu to such as 4, 0.5 or 500m",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Installation:
    """Pools and images that a chart installed."""

    pools: Mapping[str, PoolConfig]
    """Pools by name."""
    images: Mapping[str, str] = field(default_factory=dict)
    """Full names of the images ``data``, ``train`` and ``serve``; empty for the released ones."""
    pod_security: Mapping[str, Any] = field(default_factory=lambda: POD_SECURITY)
    """Security context of every pod; OpenShift's has no user of its own."""

    def pool(self, name: str) -> PoolConfig:
        """Return the pool of that name; ConfigError, with the known names, where there is none."""
        return get_pool(name, self.pools)

    def image(self, target: Literal["data", "train", "serve"]) -> str:
        """Return the full name of an image, with its registry and tag."""
        return self.images.get(target, f"clipmill/{target}:{VERSION}")


def load_installation(
    namespace: str, *, api: ClusterApi, environment: Mapping[str, str] = os.environ
) -> Installation:
    """Return the table of the file that CLIPMILL_POOLS names, else of the namespace's ConfigMap.

    Raises:
        ConfigError: the table can't be read.
        ClusterError: the namespace has no installation, or the cluster can't be reached.
    """
    if environment.get(POOLS_VARIABLE):
        return _read_file(Path(environment[POOLS_VARIABLE]))
    config_map = api.config_map(namespace, POOLS_CONFIG_MAP)
    if config_map is None:
        raise ClusterError(
            f"clipmill isn't installed in the namespace {namespace}: it has no ConfigMap "
            f"{POOLS_CONFIG_MAP}",
            expected="the namespace of a Helm release of clipmill",
            action=f"pass its namespace with -n, or install the chart there; {POOLS_VARIABLE}=FILE "
            "names a table of your own",
        )
    source = f"ConfigMap {namespace}/{POOLS_CONFIG_MAP}"
    return _parse_table(config_map.get("data", {}).get(POOLS_FILE, ""), source)


def load_pools(environment: Mapping[str, str] = os.environ) -> Mapping[str, PoolConfig]:
    """Return the pools of the file that CLIPMILL_POOLS names, else the chart's defaults.

    Raises:
        ConfigError: there is no such file, or it isn't such a table.
    """
    return default_installation(environment).pools


def default_installation(environment: Mapping[str, str] = os.environ) -> Installation:
    """Return the file's table that CLIPMILL_POOLS names, else the chart's defaults.

    Raises:
        ConfigError: there is no such file, or it isn't such a table.
    """
    return _read_file(Path(environment.get(POOLS_VARIABLE) or _DEFAULTS))


def _read_file(path: Path) -> Installation:
    try:
        return _parse_table(path.read_text(), str(path))
    except OSError as error:
        raise _table_error(str(path), error) from error


def _parse_table(text: str, source: str) -> Installation:
    try:
        table = json.loads(text)
        pools, images = table["pools"], table.get("images", {})
        pod_security = table.get("podSecurity", POD_SECURITY)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _table_error(source, error) from error
    return Installation(pools=parse_pools(pools), images=images, pod_security=pod_security)


def parse_pools(pools: Mapping[str, Mapping[str, Any]]) -> dict[str, PoolConfig]:
    """Return the pools of the chart's values, whose keys are in camel case; nulls remove keys."""
    return {
        name: PoolConfig.from_json({_snake(k): v for k, v in value.items()}, f"pools.{name}")
        for name, value in _without_nulls(pools).items()
    }


def _without_nulls(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_nulls(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if value is not None
    }


def _table_error(source: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"the table of pools can't be read from {source}: {error}",
        expected='JSON: {"pools": {NAME: POOL}, "images": {"train": IMAGE, "data": IMAGE}}',
        action=f"correct {POOLS_VARIABLE}, or run helm upgrade if it is the chart's ConfigMap",
    )


def pools_json(values_file: Path) -> str:
    """Return ``pools`` of the chart's values as text that ``load_pools`` reads."""
    import yaml

    values = yaml.safe_load(values_file.read_text())
    return json.dumps({"pools": values["pools"]}, indent=2, sort_keys=True) + "\n"


def get_pool(name: str, pools: Mapping[str, PoolConfig]) -> PoolConfig:
    """Return the pool of that name; ConfigError, with the known names, where there is none."""
    if name not in pools:
        raise ConfigError(
            f"{name!r} is no pool",
            expected=f"one of {', '.join(sorted(pools))}",
            action="choose one, or add it to pools in the chart's values",
        )
    return pools[name]


def container_resources(pool: PoolConfig) -> dict[str, Any]:
    """Return requests and limits of a container that gets a node's share in full."""
    amounts: dict[str, Any] = {"cpu": pool.cpu_quantity, "memory": f"{pool.memory_gibibytes}Gi"}
    if pool.gpus:
        amounts[pool.gpu_resource] = str(pool.gpus)
    amounts |= {name: str(count) for name, count in network_devices(pool).items()}
    return {"requests": dict(amounts), "limits": dict(amounts)}


def network_devices(pool: PoolConfig) -> dict[str, int]:
    """Return a node's network devices by the name under which they are requested."""
    names = {"efa": "vpc.amazonaws.com/efa", "infiniband": "rdma/hca"}
    return {names[pool.fabric]: pool.fabric_devices} if pool.fabric_devices else {}


def fabric_environment(pool: PoolConfig) -> dict[str, str]:
    """Return the variables of NCCL and libfabric; empty for a pool without GPUs."""
    if not pool.gpus:
        return {}
    common = {
        "NCCL_DEBUG": "WARN",
        # A collective that hangs ends the process, so that the job restarts from its checkpoint.
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
    }
    by_fabric = {
        "none": {},
        # libfabric's EFA provider; huge pages aren't available to an unprivileged pod.
        "efa": {"FI_PROVIDER": "efa", "FI_EFA_USE_HUGE_PAGE": "0", "NCCL_SOCKET_IFNAME": "^lo"},
        "infiniband": {"NCCL_IB_HCA": "mlx5", "NCCL_SOCKET_IFNAME": "^lo,docker"},
    }
    return common | by_fabric[pool.fabric]


def _snake(name: str) -> str:
    return re.sub(r"[A-Z]", lambda letter: f"_{letter[0].lower()}", name)
