"""The script for kind: what it would run, and that it names the versions of the page."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "hack" / "kind"
PAGE = (ROOT / "docs" / "cluster.md").read_text()


def dry_run():
    done = subprocess.run(
        [SCRIPT, "--dry-run"],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
        env={"PATH": "/usr/bin:/bin"},
    )
    return done.stdout


def test_a_dry_run_prints_each_step_in_order():
    text = dry_run()
    steps = [
        "kind create cluster", "kind load docker-image clipmill/serve",
        "upgrade --install cert-manager", "kube-prometheus-stack", "kind: Gateway\n",
        "charts/kserve-resources",
        "platform-agnostic-k8s-native", "charts/kubeflow-trainer", "namespace-install.yaml",
        "upgrade --install clipmill",
    ]  # fmt: skip
    places = [text.find(step) for step in steps]
    assert -1 not in places
    assert places == sorted(places)


def test_its_versions_and_addresses_are_those_of_the_page():
    pinned = r"https://github\.com/\S+/releases/download/\S+|\?ref=[\d.]+|--version v?[\d.]+\d"
    commands = set(re.findall(pinned, dry_run().replace("\\", "")))
    assert len(commands) >= 9
    assert {c for c in commands if c.strip('"') not in PAGE} == set()


def test_an_unknown_option_is_refused():
    done = subprocess.run([SCRIPT, "--al"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "unknown option --al" in done.stderr


def test_shellcheck_finds_nothing():
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck isn't installed")
    subprocess.run(["shellcheck", SCRIPT], check=True)
