"""``python -m clipmill.cluster.sbom``: an image's packages as a CycloneDX 1.6 document.

cyclonedx-bom would write more fields, but itself adds 33 packages to the image that it lists.
"""

import json
import sys
from importlib.metadata import PackageMetadata, distributions
from typing import Any


def bill_of_materials() -> dict[str, Any]:
    """Return all installed Python distributions with version and license, as CycloneDX."""
    installed = {d.metadata["Name"]: d for d in distributions() if d.metadata["Name"]}
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
                **_license(_field(d.metadata, "License-Expression")),
            }
            for name, d in sorted(installed.items(), key=lambda pair: pair[0].lower())
        ],
    }


def _field(metadata: PackageMetadata, name: str) -> str:
    return metadata[name] if name in metadata else ""  # noqa: SIM401  # it has no get


def _license(expression: str) -> dict[str, Any]:
    return {"licenses": [{"expression": expression}]} if expression else {}


if __name__ == "__main__":
    json.dump(bill_of_materials(), sys.stdout, indent=1)
