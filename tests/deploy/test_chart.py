"""The helm chart: what it renders is valid."""

import math
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.deploy.manifests import (
    CHART,
    VALUES,
    VERSIONS,
    only,
    options_of_the_schema,
    pod_of,
    rendered,
    rendered_with,
    run,
    server_of,
    template,
    validate,
)

TLS = {"enabled": True, "secretName": "x"}
EXPLICIT = {"modelControlMode": "explicit"}
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
by_values = pytest.mark.parametrize("values", VALUES, ids=lambda path: path.name.removesuffix("-values.yaml"))


@by_values
def test_helm_has_nothing_against_the_chart(values: Path) -> None:
    done = run("helm", "lint", "--strict", "--quiet", CHART, "-f", values)
    assert done.code == 0, done.out + done.err


@pytest.mark.parametrize("version", VERSIONS)
@by_values
def test_what_it_renders_is_what_kubernetes_takes(values: Path, version: str) -> None:
    for resource in rendered(values):
        validate(resource, version)


def test_strictly_means_that_an_unknown_field_is_refused() -> None:
    deployment = only(rendered(VALUES[0]), "Deployment")
    wrong = deployment | {"spec": deployment["spec"] | {"replicsa": 1}}
    with pytest.raises(jsonschema.ValidationError, match="replicsa"):
        validate(wrong, VERSIONS[-1])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"replicaCount": 2}, "replicaCount"),
        ({"image": {"tga": "1"}}, "tga"),
        ({"replicas": "two"}, "replicas"),
        ({"replicas": -1}, "replicas"),
        ({"models": [{"name": "bge-m3", "version": 1}]}, "source"),
        ({"models": [{"source": "/etc/passwd", "name": "x", "version": 1}]}, "source"),
        ({"models": [{"source": "m3-mini", "name": "../x", "version": 1}]}, "name"),
        ({"models": [{"source": "m3-mini", "name": "x", "version": 0}]}, "version"),
        ({"server": {"options": {"max-queue-tokens": 5}}}, "max-queue-tokens"),
        ({"server": {"options": {"max-queued-tokens": 0}}}, "max-queued-tokens"),
        ({"server": {"options": {"log-format": "xml"}}}, "log-format"),
        ({"server": {"modelControlMode": "pull"}}, "modelControlMode"),
        ({"storage": {"kind": "hostPath"}}, "kind"),
        ({"storage": {"claim": {"accessModes": ["ReadOnlyMany"]}}}, "accessModes"),
        ({"bucket": {"enabled": True}}, "bucket"),
        ({"tls": {"enabled": True}}, "tls"),
        ({"tls": {"clientCa": {"enabled": True}}}, "tls"),
        ({"access": {"enabled": True}}, "access"),
        ({"management": {"port": 8001}}, "management"),
        ({"gpu": {"enabled": True, "count": 0}}, "count"),
        ({"autoscaling": {"kind": "vpa"}}, "kind"),
        ({"drain": {"graceSeconds": "30s"}}, "graceSeconds"),
        ({"probes": {"protocol": "tcp"}}, "protocol"),
        ({"probes": {"readinessService": 1}}, "readinessService"),
        ({"resources": {"limits": {"memory": "8 GB"}}}, "memory"),
        ({"extraEnv": [{"nmae": "A", "value": "1"}]}, "extraEnv"),
    ],
    ids=str,
)
def test_a_wrong_value_is_refused_by_the_schema_and_named(values: dict[str, object], said: str) -> None:
    done = template(values)
    assert done.code != 0
    assert "values don't meet the specifications of the schema" in done.err
    assert said in done.err


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"models": [{"source": "m3-mini", "name": "x", "version": each} for each in (1, 2)]}, "name of its own"),
        ({"server": {"modelControlMode": "explicit"}}, "set management.enabled"),
        ({"models": []}, "nothing else fills the repository"),
        ({"models": [{"source": "m3-mini", "name": "x", "version": 1, "revision": "main"}]}, "no revisions"),
        ({"tls": TLS, "probes": {"protocol": "grpc"}}, "speaks no TLS"),
        ({"tls": TLS, "probes": {"readinessService": "x"}}, '"x" can be asked about over gRPC alone'),
        ({"probes": {"protocol": "http", "readinessService": "x"}}, '"x" can be asked about over gRPC alone'),
        (
            {"server": EXPLICIT, "management": {"enabled": True}, "probes": {"protocol": "grpc"}},
            "set server.loadModels",
        ),
        ({"autoscaling": {"kind": "hpa", "queuedTokens": None}}, "set queuedTokens or waitingRequests"),
        ({"autoscaling": {"kind": "keda", "minReplicas": 9}}, "minReplicas is above maxReplicas"),
        ({"service": {"type": "LoadBalancer"}}, "set tls.enabled, or service.allowPlainText"),
        ({"service": {"type": "NodePort"}}, "set tls.enabled, or service.allowPlainText"),
        ({"cache": {"config": "redis,host=redis"}}, "cache.config needs more"),
        ({"server": {"options": {"otlp-endpoint": "http://c:4317"}}}, "server.options.otlp-endpoint needs more"),
        ({"pull": {"endpoint": "http://mirror:8080"}}, "pull.endpoint needs more"),
        ({"pull": {"endpoint": "http://mirror"}}, "pull.endpoint needs more"),
        ({"server": {"extraArgs": ["--drain-grace-s=600"]}}, "the chart gives --drain-grace-s itself"),
        ({"server": {"extraArgs": ["--drain-grace-s", "600"]}}, "the chart gives --drain-grace-s itself"),
        ({"server": {"extraArgs": ["--no-allow-insecure"]}}, "the chart gives --no-allow-insecure itself"),
        (
            {"models": [{"source": "m3-mini", "name": name, "version": 1} for name in ("a.b", "a-b")]},
            '"a.b" and "a-b" would both be named pull-a-b',
        ),
    ],
    ids=str,
)
def test_values_that_do_not_go_together_are_refused_with_the_reason(values: dict[str, object], said: str) -> None:
    done = template(values)
    assert done.code != 0
    assert said in done.err


@pytest.mark.parametrize(
    "values",
    [
        {"service": {"type": "NodePort", "allowPlainText": True}},
        {"cache": {"config": "redis,host=redis"}, "networkPolicy": {"egress": [{"ports": [{"port": 6379}]}]}},
        {"cache": {"config": "redis,host=redis"}, "networkPolicy": {"enabled": False}},
        {"cache": {"config": "local,size=1048576"}},
        {"pull": {"endpoint": "https://mirror/hub"}},
        {"pull": {"endpoint": "http://mirror:443"}},
    ],
    ids=str,
)
def test_what_was_allowed_or_needs_no_more_is_taken(values: dict[str, object]) -> None:
    rendered_with(**values)


def test_every_argument_that_the_chart_gives_is_refused_among_the_extra_ones() -> None:
    given = {each.partition("=")[0] for values in VALUES for each in server_of(rendered(values))["args"][1:]}
    options = options_of_the_schema()
    for name in given:
        if name.removeprefix("--").removeprefix("no-") not in {*options, "load-model", "repository-poll-secs"}:
            assert "the chart gives" in template({"server": {"extraArgs": [name]}}).err, name


@by_values
def test_the_metrics_stay_inside_the_cluster(values: Path) -> None:
    services = [each["spec"] for each in rendered(values) if each["kind"] == "Service"]
    [metrics] = [each for each in services if "metrics" in [port["name"] for port in each["ports"]]]
    assert metrics["type"] == "ClusterIP"
    assert len(metrics["ports"]) == 1


@pytest.mark.parametrize(
    ("values", "protocol"),
    [
        ({}, "grpc"),
        ({"probes": {"protocol": "http"}}, "httpGet"),
        ({"tls": TLS}, "httpGet"),
        ({"server": EXPLICIT, "management": {"enabled": True}}, "httpGet"),
        ({"server": EXPLICIT | {"loadModels": ["bge-m3"]}, "management": {"enabled": True}}, "grpc"),
        ({"server": {"modelControlMode": "poll"}}, "grpc"),
        (
            {"models": [], "storage": {"claim": {"existingName": "x"}}, "server": {"modelControlMode": "poll"}},
            "httpGet",
        ),
        ({"models": [], "storage": {"claim": {"existingName": "x"}}}, "grpc"),
    ],
    ids=str,
)
def test_probes_are_grpc_unless_tls_an_empty_start_or_the_values_speak_against_it(
    values: dict[str, object], protocol: str
) -> None:
    server = server_of(rendered_with(**values))
    assert all(protocol in server[probe] for probe in PROBES)


def test_the_three_grpc_probes_ask_three_things() -> None:
    server = server_of(rendered_with())
    asked = [server[probe]["grpc"]["service"] for probe in PROBES]
    assert asked == ["", "trivec.v1.EmbeddingService", "live"]


@by_values
def test_the_process_has_a_minute_to_answer_before_it_is_started_anew(values: Path) -> None:
    probe = server_of(rendered(values))["livenessProbe"]
    # Over HTTP the server gives itself that minute.
    assert "httpGet" in probe or probe["failureThreshold"] * probe["periodSeconds"] >= 60


def test_the_schema_knows_every_value_that_there_is() -> None:
    # Else a value that is only in values.yaml could be set to anything.
    defaults = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    schema = yaml.safe_load((CHART / "values.schema.json").read_text(encoding="utf-8"))

    def compare(value: object, described: dict[str, Any], path: str) -> None:
        if isinstance(value, dict) and "properties" in described:
            assert described["additionalProperties"] is False, path
            assert value.keys() <= described["properties"].keys(), path
            for name, each in value.items():
                compare(each, described["properties"][name], f"{path}.{name}")

    compare(defaults, schema, "values")


@by_values
def test_an_autoscaler_alone_says_how_many_pods_there_are(values: Path) -> None:
    resources = rendered(values)
    scaled = any(each["kind"] in ("HorizontalPodAutoscaler", "ScaledObject") for each in resources)
    assert ("replicas" in only(resources, "Deployment")["spec"]) is not scaled


def test_the_pull_is_done_by_one_pod_into_the_volume_of_all() -> None:
    pod = pod_of(rendered_with())
    [pull] = pod["initContainers"]
    [volume] = (each for each in pod["volumes"] if each["name"] == "models")
    assert {"name": "models", "mountPath": "/models"} in pull["volumeMounts"]
    assert (
        volume["persistentVolumeClaim"]["claimName"]
        == only(rendered_with(), "PersistentVolumeClaim")["metadata"]["name"]
    )


def test_a_pod_sees_the_versions_that_the_values_name_and_no_others() -> None:
    model = {"source": "m3-mini", "name": "mini", "version": 3}
    mounts = server_of(rendered_with(models=[model]))["volumeMounts"]
    seen = {each["mountPath"]: each.get("subPath") for each in mounts if each["name"] == "models"}
    assert seen == {"/models/mini/3": "mini/3", "/models/mini/config.pbtxt": "mini/config.pbtxt"}


def test_a_changed_config_starts_new_pods() -> None:
    def annotations(config: str) -> object:
        model = {"source": "m3-mini", "name": "mini", "version": 1, "config": config}
        return only(rendered_with(models=[model]), "Deployment")["spec"]["template"]["metadata"]["annotations"]

    assert annotations("a") == annotations("a")
    assert annotations("a") != annotations("b")


def test_a_gpu_pod_asks_for_its_gpu_and_may_run_where_gpus_are() -> None:
    resources = rendered_with(gpu={"enabled": True, "count": 2})
    pod, server = pod_of(resources), server_of(resources)
    assert server["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert server["image"].endswith("-cuda")
    assert pod["runtimeClassName"] == "nvidia"
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]


@pytest.mark.parametrize("seconds", [5, 7, 900])
def test_a_start_may_take_as_long_as_the_values_say(seconds: int) -> None:
    probe = server_of(rendered_with(probes={"startupTimeoutSeconds": seconds}))["startupProbe"]
    assert probe["failureThreshold"] == math.ceil(seconds / probe["periodSeconds"])


def test_the_notes_say_how_to_reach_the_server_and_what_is_open() -> None:
    flags = ["--dry-run=client", "--namespace", "search"]
    done = run("helm", "install", "trivec", CHART, *flags)
    assert done.code == 0, done.err
    assert "dns:///trivec-headless.search.svc:8001" in done.out
    assert "plain text, and only what networkPolicy.clients names reaches the port" in done.out
