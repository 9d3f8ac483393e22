"""``python -m clipmill.cluster.sbom``: what an image holds, as a CycloneDX 1.6 document."""

import json
import sys
from importlib.metadata import PackageMetadata, distributions
from typing import Any


def bill_of_materials() -> dict[str, Any]:
    """Every Python distribution that is installed, with its version and licence."""
    found = {d.metadata["Name"]: d for d in distributions() if d.metadata["Name"]}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "components": [
            {
                "type": "library",
                "name": name,
                "version": d.version,
                "purl": f"pkg:pypi/{name.lower().replace('_', '-')}@{d.version}",
                **_licence(_field(d.metadata, "License-Expression")),
            }
            for name, d in sorted(found.items(), key=lambda pair: pair[0].lower())
        ],
    }


def _field(metadata: PackageMetadata, name: str) -> str:
    return metadata[name] if name in metadata else ""  # noqa: SIM401  # it has no get


def _licence(expression: str) -> dict[str, Any]:
    return {"licenses": [{"expression": expression}]} if expression else {}


if __name__ == "__main__":
    json.dump(bill_of_materials(), sys.stdout, indent=1)
