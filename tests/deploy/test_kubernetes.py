"""The manifest fits Kubernetes' schemas, and what server and image expect. No cluster runs it here."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from server.cli import parse_arguments
from server.settings import ServeSettings, unknown_variables
from server.shutdown import FLUSH_SECONDS
from tests.deploy.prometheus import PROMETHEUS, tool

ROOT = Path(__file__).parents[2]
MANIFEST = ROOT / "deploy" / "kubernetes.yaml"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
GUIDE = (ROOT / "docs" / "guide" / "serving.md").read_text(encoding="utf-8")
HTTP_PAGE = (ROOT / "docs" / "reference" / "http.md").read_text()
OBJECTS: list[dict[str, Any]] = list(yaml.safe_load_all(MANIFEST.read_text()))
GIB = 2**30


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [each for each in OBJECTS if each["kind"] == kind]


@pytest.fixture
def pod() -> dict[str, Any]:
    (stateful_set,) = of_kind("StatefulSet")
    found: dict[str, Any] = stateful_set["spec"]["template"]["spec"]
    return found


@pytest.fixture
def container(pod: dict[str, Any]) -> dict[str, Any]:
    (found,) = pod["containers"]
    return dict(found)


@pytest.fixture
def settings(container: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServeSettings:
    """What the server in the pod is told, by its file, its variables and its arguments."""
    (config_map,) = of_kind("ConfigMap")
    (mounted,) = [m for m in container["volumeMounts"] if m["name"] == "settings"]
    for name, text in config_map["data"].items():
        (tmp_path / name).write_text(text)
    for name in [name for name in os.environ if name.startswith("SECATEUR_")]:
        monkeypatch.delenv(name)
    for variable in container["env"]:
        monkeypatch.setenv(variable["name"], variable.get("value", "a-key-that-is-long-enough"))
    found = parse_arguments([arg.replace(mounted["mountPath"], str(tmp_path)) for arg in container["args"]])
    assert isinstance(found, ServeSettings)
    return found


@pytest.mark.parametrize("version", ["1.31", kubernetes_validate.latest_version()])
@pytest.mark.parametrize("manifest", OBJECTS, ids=lambda each: f"{each['kind']}-{each['metadata']['name']}")
def test_it_fits_the_schemas(manifest: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


def test_the_server_understands_what_it_is_told(settings: ServeSettings) -> None:
    assert settings.sparsities[0] == 0
    assert settings.api_keys
    assert settings.admin_key
    assert list(unknown_variables(os.environ)) == []


def test_running_answers_may_end(pod: dict[str, Any], settings: ServeSettings) -> None:
    """Requests that still come while the pod's end gets around, and then those that run."""
    (container,) = pod["containers"]
    before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    after = settings.shutdown_timeout_seconds + FLUSH_SECONDS
    assert pod["terminationGracePeriodSeconds"] >= before + after


def test_it_is_the_images_user_and_cache(pod: dict[str, Any], container: dict[str, Any]) -> None:
    assert f"--uid {pod['securityContext']['runAsUser']} " in DOCKERFILE
    places = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert f"SECATEUR_CACHE_DIR={places['cache']} " in DOCKERFILE
    written = re.findall(r"(?:HF_HOME|TRITON_CACHE_DIR)=(\S+)", DOCKERFILE)
    assert len(written) == 2
    assert all(place.startswith(places["cache"]) for place in written)  # all else is read-only


def test_volumes_and_ports_find_each_other(pod: dict[str, Any], container: dict[str, Any]) -> None:
    (stateful_set,) = of_kind("StatefulSet")
    claims = [claim["metadata"]["name"] for claim in stateful_set["spec"]["volumeClaimTemplates"]]
    volumes = [volume["name"] for volume in pod["volumes"]]
    assert sorted(mount["name"] for mount in container["volumeMounts"]) == sorted(claims + volumes)
    (port,) = container["ports"]
    assert f"EXPOSE {port['containerPort']}\n" in DOCKERFILE
    for service in of_kind("Service"):
        (served,) = service["spec"]["ports"]
        assert served.get("targetPort", served["port"]) in (port["name"], port["containerPort"])
        labels = stateful_set["spec"]["template"]["metadata"]["labels"]
        assert service["spec"]["selector"].items() <= labels.items()
    assert stateful_set["spec"]["serviceName"] in [each["metadata"]["name"] for each in of_kind("Service")]
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[kind]["httpGet"]["port"] == port["name"]
        assert f"| `GET {container[kind]['httpGet']['path']}` |" in HTTP_PAGE


def test_prometheus_finds_pods_that_are_not_ready_by_names_that_last(tmp_path: Path) -> None:
    """The guide's job asks for SRV records of the headless Service's port; A records would give addresses."""
    (headless,) = [each for each in of_kind("Service") if each["spec"].get("clusterIP") == "None"]
    assert headless["spec"]["publishNotReadyAddresses"] is True
    (stateful_set,) = of_kind("StatefulSet")
    assert stateful_set["spec"]["serviceName"] == headless["metadata"]["name"]
    (text,) = re.findall(r"^```yaml\n(scrape_configs:\n.*?)^```", GUIDE, flags=re.MULTILINE | re.DOTALL)
    (job,) = yaml.safe_load(text)["scrape_configs"]
    (found_by,) = job.pop("dns_sd_configs")
    (port,) = headless["spec"]["ports"]
    service = headless["metadata"]["name"]
    assert found_by == {"names": [f"_{port['name']}._tcp.{service}.default.svc.cluster.local"]}
    (committed,) = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]
    assert job.items() <= committed.items()
    (tmp_path / "prometheus.yml").write_text(text)
    command = [tool("promtool"), "check", "config", str(tmp_path / "prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_service_of_its_name_is_no_setting(pod: dict[str, Any]) -> None:
    assert "secateur" in [service["metadata"]["name"] for service in of_kind("Service")]
    assert pod["enableServiceLinks"] is False


def test_the_cache_fits_into_the_memory(container: dict[str, Any], settings: ServeSettings) -> None:
    limit = container["resources"]["limits"]["memory"]
    assert limit.endswith("Gi")
    assert settings.kv_cache_gib is not None
    assert settings.kv_cache_gib * GIB < int(limit[:-2]) * GIB
