"""The chart's table of pools, as JSON that the package carries."""

import json
from pathlib import Path

import yaml


def pools_json(values_file: Path) -> str:
    """``pools`` of the chart's values, as text that ``load_pools`` reads."""
    values = yaml.safe_load(values_file.read_text())
    return json.dumps(values["pools"], indent=2, sort_keys=True) + "\n"
