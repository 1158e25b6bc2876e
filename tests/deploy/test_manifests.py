"""What the chart and the kustomizations have in common: they fit the server, and their parts fit each other."""

import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from trivec_server.cli_cache import PASSWORD_VARIABLES
from trivec_server.metrics import Metrics
from trivec_server.repository.model_config import read_model_config
from trivec_server.settings import ServeSettings
from trivec_server.transport.health import LIVE

from tests.deploy.manifests import (
    CHART,
    KUBERNETES,
    KUSTOMIZATIONS,
    KUSTOMIZE,
    ROOT,
    VALUES,
    VERSIONS,
    Manifest,
    containers,
    only,
    options_of_the_schema,
    parse,
    pod_of,
    rendered,
    server_of,
    trivec_commands,
    validate,
    variables,
)

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
everywhere = pytest.mark.parametrize(
    "source", [*VALUES, *KUSTOMIZATIONS], ids=lambda path: path.name.removesuffix("-values.yaml")
)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("source", KUSTOMIZATIONS, ids=lambda path: path.name)
def test_a_kustomization_makes_what_kubernetes_takes(source: Path, version: str) -> None:
    for resource in rendered(source):
        validate(resource, version)


@everywhere
def test_the_command_line_takes_every_argument(source: Path) -> None:
    commands = list(trivec_commands(rendered(source)))
    assert [each[0] for each in commands].count("serve") == 1
    for arguments in commands:
        parse(arguments)


@everywhere
def test_every_variable_of_the_server_is_one_that_it_reads(source: Path) -> None:
    names = {each["name"] for each in server_of(rendered(source)).get("env", ())}
    known = variables() | set(PASSWORD_VARIABLES)
    assert {name for name in names if name.startswith("TRIVEC_")} <= known


@everywhere
def test_services_do_not_set_the_server_s_variables(source: Path) -> None:
    # The Service trivec-grpc would be TRIVEC_GRPC_PORT=tcp://10.0.0.1:8001.
    assert pod_of(rendered(source))["enableServiceLinks"] is False


@everywhere
def test_the_ports_are_those_that_the_server_listens_on(source: Path) -> None:
    resources = rendered(source)
    server = server_of(resources)
    ports = {each["name"]: each["containerPort"] for each in server["ports"]}
    given = parse(server["args"])
    assert ports == {"grpc": given["grpc_port"], "metrics": given["metrics_port"]}
    for probe in PROBES:
        if "grpc" in server[probe]:
            assert server[probe]["grpc"]["port"] == ports["grpc"]
        else:
            assert server[probe]["httpGet"]["port"] == "metrics"
    for service in (each for each in resources if each["kind"] == "Service"):
        assert {each["targetPort"] for each in service["spec"]["ports"]} <= ports.keys()


@everywhere
def test_the_kubelet_kills_no_sooner_than_the_server_has_drained(source: Path) -> None:
    resources = rendered(source)
    given, server = parse(server_of(resources)["args"]), server_of(resources)
    pre_stop = server.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    drain = pre_stop + given["drain_pause_s"] + given["drain_grace_s"]
    assert pod_of(resources)["terminationGracePeriodSeconds"] >= drain + 10


@everywhere
def test_balancers_have_longer_to_see_the_drain_than_a_server_by_itself_gives_them(source: Path) -> None:
    given = parse(server_of(rendered(source))["args"])
    assert given["drain_pause_s"] >= ServeSettings().drain_pause_s


@everywhere
def test_the_server_listens_with_tls_or_is_told_to_do_without(source: Path) -> None:
    given = parse(server_of(rendered(source))["args"])
    assert given["allow_insecure"] is (given["tls_certificate"] is None)
    assert given["host"] not in ("127.0.0.1", "localhost")


@everywhere
def test_the_kubelet_s_grpc_probe_is_not_used_with_tls(source: Path) -> None:
    server = server_of(rendered(source))
    if parse(server["args"])["tls_certificate"] is not None:
        assert not [probe for probe in PROBES if "grpc" in server[probe]]


@everywhere
def test_only_a_server_that_hangs_is_started_anew(source: Path) -> None:
    probe = server_of(rendered(source))["livenessProbe"]
    assert probe["grpc"]["service"] == LIVE if "grpc" in probe else probe["httpGet"]["path"] == "/v2/health/live"


@everywhere
def test_a_probe_asks_in_one_way_and_all_three_in_the_same(source: Path) -> None:
    server = server_of(rendered(source))
    ways = {tuple(server[probe].keys() & {"grpc", "httpGet"}) for probe in PROBES}
    assert ways in ({("grpc",)}, {("httpGet",)})


@everywhere
def test_every_mount_has_its_volume_and_every_volume_a_mount(source: Path) -> None:
    resources = rendered(source)
    mounted = {mount["name"] for each in containers(resources) for mount in each["volumeMounts"]}
    assert mounted == {each["name"] for each in pod_of(resources)["volumes"]}


@everywhere
def test_files_of_the_arguments_are_mounted_and_those_that_change_as_whole_directories(source: Path) -> None:
    server = server_of(rendered(source))
    mounts = {each["mountPath"]: each for each in server["volumeMounts"]}
    given = parse(server["args"])
    for name in ("tls_certificate", "tls_private_key", "tls_client_ca", "access_file"):
        if given[name] is not None:
            mount = mounts[str(Path(given[name]).parent)]
            # What is mounted by subPath never changes.
            assert "subPath" not in mount
            assert mount["readOnly"] is True
    assert [str(each) for each in given["model_repository"]] == ["/models"]
    assert "/models" in mounts


@everywhere
def test_the_pod_sees_of_the_authorities_secret_the_certificates_alone(source: Path) -> None:
    for volume in (each for each in pod_of(rendered(source))["volumes"] if each["name"] == "client-ca"):
        assert volume["secret"]["items"] == [{"key": "ca.crt", "path": "ca.crt"}]


@everywhere
def test_the_pod_keeps_to_the_restricted_standard(source: Path) -> None:
    resources = rendered(source)
    pod = pod_of(resources)
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "runAsGroup": 10001,
        "fsGroup": 10001,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    for container in containers(resources):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "/tmp" in [each["mountPath"] for each in container["volumeMounts"]]  # noqa: S108 - in the container


def test_the_image_is_made_for_the_user_the_ports_and_the_volume_of_the_pod() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    pod, server = (found(rendered(KUSTOMIZE / "base")) for found in (pod_of, server_of))
    security = pod["securityContext"]
    assert f"USER {security['runAsUser']}:{security['runAsGroup']}\n" in dockerfile
    assert "EXPOSE " + " ".join(str(each["containerPort"]) for each in server["ports"]) + "\n" in dockerfile
    assert "TRIVEC_MODEL_REPOSITORY=/models" in dockerfile


@everywhere
def test_the_server_writes_to_none_of_its_models(source: Path) -> None:
    models = [each for each in server_of(rendered(source))["volumeMounts"] if each["name"] == "models"]
    assert models
    assert all(each["readOnly"] is True for each in models)


@everywhere
def test_selectors_find_the_pods(source: Path) -> None:
    resources = rendered(source)
    labels = only(resources, "Deployment")["spec"]["template"]["metadata"]["labels"]
    selectors: dict[str, Callable[[Manifest], dict[str, str]]] = {
        "Deployment": lambda spec: spec["selector"]["matchLabels"],
        "Service": lambda spec: spec["selector"],
        "PodDisruptionBudget": lambda spec: spec["selector"]["matchLabels"],
        "NetworkPolicy": lambda spec: spec["podSelector"]["matchLabels"],
    }
    for resource in resources:
        if resource["kind"] in selectors:
            assert selectors[resource["kind"]](resource["spec"]).items() <= labels.items()
    for constraint in pod_of(resources).get("topologySpreadConstraints", ()):
        assert constraint["labelSelector"]["matchLabels"].items() <= labels.items()


@everywhere
def test_prometheus_finds_each_pod_once(source: Path) -> None:
    resources = rendered(source)
    for monitor in (each for each in resources if each["kind"] == "ServiceMonitor"):
        [endpoint] = monitor["spec"]["endpoints"]
        services = [
            each
            for each in resources
            if each["kind"] == "Service"
            and monitor["spec"]["selector"]["matchLabels"].items() <= each["metadata"]["labels"].items()
            and endpoint["port"] in [port["name"] for port in each["spec"]["ports"]]
        ]
        assert len(services) == 1


@everywhere
def test_the_alerts_know_the_job_and_hear_nothing_of_pods_that_are_not_started(source: Path) -> None:
    alerts = (ROOT / "deploy" / "prometheus" / "rules" / "alerts.yml").read_text(encoding="utf-8")
    [known] = set(re.findall(r'job=~"([^"]+)"', alerts))
    for monitor in (each for each in rendered(source) if each["kind"] == "ServiceMonitor"):
        [endpoint] = monitor["spec"]["endpoints"]
        [job] = [each for each in endpoint["relabelings"] if each.get("targetLabel") == "job"]
        assert re.fullmatch(known, job["replacement"])
        assert {
            "sourceLabels": ["__meta_kubernetes_pod_phase"],
            "regex": "Pending",
            "action": "drop",
        } in endpoint["relabelings"]


@everywhere
def test_autoscalers_look_at_metrics_that_there_are_and_scale_the_deployment(source: Path) -> None:
    resources = rendered(source)
    for scaler in (each for each in resources if each["kind"] in ("HorizontalPodAutoscaler", "ScaledObject")):
        spec = scaler["spec"]
        assert spec["scaleTargetRef"]["name"] == only(resources, "Deployment")["metadata"]["name"]
        used = set(re.findall(r"trivec_\w+", str(spec.get("metrics") or spec["triggers"])))
        assert used
        assert used <= gauges()


def test_the_adapter_makes_the_metrics_that_the_autoscaler_looks_at() -> None:
    adapter = yaml.safe_load((KUBERNETES / "prometheus-adapter.yaml").read_text(encoding="utf-8"))
    [rule] = adapter["rules"]["custom"]
    scaler = only(rendered(CHART / "ci" / "hpa-values.yaml"), "HorizontalPodAutoscaler")
    looked_at = {each["pods"]["metric"]["name"] for each in scaler["spec"]["metrics"]}
    assert looked_at == set(re.findall(r"trivec_\w+", rule["seriesQuery"]))


def gauges() -> set[str]:
    """The names of the server's gauges."""
    return {family.name for family in Metrics().registry.collect() if family.type == "gauge"}


@everywhere
def test_a_config_in_a_config_map_is_one_that_the_server_reads(source: Path, tmp_path: Path) -> None:
    for resource in (each for each in rendered(source) if each["kind"] == "ConfigMap"):
        for name, text in resource["data"].items():
            model = name.removesuffix(".pbtxt")
            path = tmp_path / model / "config.pbtxt"
            path.parent.mkdir()
            path.write_text(text, encoding="utf-8")
            assert read_model_config(path, model).warnings == ()


def test_the_version_is_the_project_s() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert (chart["version"], chart["appVersion"]) == (VERSION, VERSION)
    for source in KUSTOMIZATIONS:
        assert server_of(rendered(source))["image"] in (f"trivec:{VERSION}", f"trivec:{VERSION}-cuda")


@pytest.mark.parametrize("name", options_of_the_schema())
def test_an_option_of_the_schema_is_one_of_the_server_with_these_bounds(name: str) -> None:
    described = options_of_the_schema()[name]
    if described.get("type") == "boolean":
        flags = [f"--{name}", f"--no-{name}"]
    else:
        values = (
            described.get("enum") or described.get("examples") or [described.get("minimum", 0.5), described["maximum"]]
        )
        flags = [f"--{name}={value}" for value in values]
    for flag in flags:
        parse(["serve", flag])


def test_the_kustomize_base_is_what_the_chart_makes_of_its_defaults() -> None:
    def bare(resources: tuple[Manifest, ...]) -> dict[tuple[str, str], Manifest]:
        """Without what only helm has: its labels and annotations, and the namespace."""
        return {
            (each["kind"], each["metadata"]["name"]): each | {"metadata": {"name": each["metadata"]["name"]}}
            for each in resources
        }

    assert bare(rendered(KUSTOMIZE / "base")) == bare(rendered(CHART / "ci" / "cpu-values.yaml"))
