"""Node pools by name: where a job runs, and the resources of one node.

The table is ``pools`` in the chart's values. ``pools.json`` next to this file is a copy of the
chart's defaults, written by ``python -m clipmill.pipelines.compile``; in a cluster the chart mounts
the table that was installed, and CLIPMILL_POOLS names its file.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from clipmill.config import Config
from clipmill.errors import ConfigError

POOLS_VARIABLE = "CLIPMILL_POOLS"
_DEFAULTS = Path(__file__).parent / "pools.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolConfig(Config):
    """A pool of equal nodes."""

    gpus: int = 0
    """GPUs of a node that a job uses; 0 for a pool without."""
    gpu_resource: str = "nvidia.com/gpu"
    """Name under which the GPUs are requested."""
    cpu: int = 4
    """Cores of a node that a job uses."""
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

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        for name, least in (("gpus", 0), ("cpu", 1), ("memory_gibibytes", 1)):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"{name} of a pool was {getattr(self, name)}",
                    expected=f"at least {least}",
                    action=f"set {name} to {least} or more",
                )


def load_pools(environment: Mapping[str, str] = os.environ) -> dict[str, PoolConfig]:
    """Return the table that CLIPMILL_POOLS names, else the chart's defaults.

    Raises:
        ConfigError: there is no such file, or it isn't such a table.
    """
    path = Path(environment.get(POOLS_VARIABLE) or _DEFAULTS)
    try:
        table = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the table of pools can't be read from {path}: {error}",
            expected="JSON: an object of a pool by name",
            action=f"correct {POOLS_VARIABLE}, or unset it for the defaults",
        ) from error
    return {
        name: PoolConfig.from_json({_snake(k): v for k, v in value.items()}, f"pools.{name}")
        for name, value in table.items()
    }


def pools_json(values_file: Path) -> str:
    """Return ``pools`` of the chart's values as text that ``load_pools`` reads."""
    import yaml

    values = yaml.safe_load(values_file.read_text())
    return json.dumps(values["pools"], indent=2, sort_keys=True) + "\n"


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
    amounts: dict[str, Any] = {"cpu": str(pool.cpu), "memory": f"{pool.memory_gibibytes}Gi"}
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
