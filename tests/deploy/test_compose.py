"""The compose file fits its schema, and what it mounts is there. No Docker starts it here."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
COMPOSE, GPU = DEPLOY / "compose.yaml", DEPLOY / "compose.gpu.yaml"


def services(file: Path = COMPOSE) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(file.read_text())["services"]
    return found


@pytest.mark.parametrize("file", [COMPOSE, GPU], ids=lambda file: file.name)
def test_it_fits_the_compose_specification(file: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        "vendor.compose-spec",
        str(file),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_mounted_and_built_is_there() -> None:
    for service in services().values():
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            assert not source.startswith(".") or (DEPLOY / source).is_dir()
    context = (DEPLOY / services()["secateur"]["build"]["context"]).resolve()
    assert (context / "Dockerfile").is_file()


def test_for_a_gpu_the_same_service_is_changed() -> None:
    assert services(GPU).keys() <= services().keys()
    assert services(GPU)["secateur"]["build"]["args"].keys() == services()["secateur"]["build"]["args"].keys()


def test_images_are_pinned_and_ports_are_this_machines() -> None:
    for name, service in services().items():
        assert name == "secateur" or service["image"].partition(":")[2].strip("v")[0].isdigit()
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_the_parts_find_each_other() -> None:
    (scrape,) = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    (static,) = scrape["static_configs"]
    assert [target.partition(":")[0] for target in static["targets"]] == ["secateur"]
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "secateur.yml").read_text())["providers"]
    assert any(
        volume.endswith(f":{provider['options']['path']}:ro") for volume in services()["grafana"]["volumes"]
    )
    assert source["jsonData"]["timeInterval"] == scrape["scrape_interval"]
