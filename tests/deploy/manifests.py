"""What helm and kubectl make of `deploy/kubernetes`, checked as Kubernetes does, and the real command line."""

import json
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import click
import jsonschema
import kubernetes_validate
import yaml
from trivec_server.cli import cli

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
CHART = KUBERNETES / "trivec"
VALUES = sorted((CHART / "ci").glob("*-values.yaml"))
KUSTOMIZE = KUBERNETES / "kustomize"
KUSTOMIZATIONS = [KUSTOMIZE / "base", *sorted((KUSTOMIZE / "overlays").iterdir())]
PROGRAMS = ROOT / ".helm" / "bin"
RELEASE = "trivec"
VERSIONS = ("1.30", "1.37")
"""Of Kubernetes: the oldest that the chart takes, and the newest that there are schemas of."""

_CUSTOM = Path(__file__).with_name("custom_resources")

Manifest = dict[str, Any]
"""YAML as it is; each test asks for what it is about."""


@dataclass(frozen=True)
class Finished:
    """What a program said."""

    code: int
    out: str
    err: str


def run(program: str, *arguments: str | Path, text: str = "") -> Finished:
    """Runs `helm` or `kubectl`, with `text` as its input."""
    command = [str(PROGRAMS / program), *map(str, arguments)]
    done = subprocess.run(command, input=text, capture_output=True, encoding="utf-8", check=False, timeout=60)
    return Finished(done.returncode, done.stdout, done.stderr)


def template(values: Path | Mapping[str, object]) -> Finished:
    """`helm template` with the values of a file, or with these."""
    flags = ["-f", "-"] if isinstance(values, Mapping) else ["-f", values]
    text = json.dumps(values) if isinstance(values, Mapping) else ""
    return run("helm", "template", RELEASE, CHART, "--namespace", "search", *flags, text=text)


@cache
def rendered(source: Path) -> tuple[Manifest, ...]:
    """The resources of a file of values, or of a kustomization."""
    done = run("kubectl", "kustomize", source) if source.is_dir() else template(source)
    assert done.code == 0, done.err
    return read(done.out)


def rendered_with(**values: object) -> tuple[Manifest, ...]:
    """The resources of the chart with these values."""
    done = template(values)
    assert done.code == 0, done.err
    return read(done.out)


def read(text: str) -> tuple[Manifest, ...]:
    """The documents of a YAML text."""
    return tuple(document for document in yaml.safe_load_all(text) if document)


def only(resources: tuple[Manifest, ...], kind: str, name_ends: str = "") -> Manifest:
    """The resource of a kind, if there is exactly one."""
    [found] = (each for each in resources if each["kind"] == kind and each["metadata"]["name"].endswith(name_ends))
    return found


def options_of_the_schema() -> dict[str, dict[str, Any]]:
    """What the chart's schema says of each of `server.options`."""
    schema = yaml.safe_load((CHART / "values.schema.json").read_text(encoding="utf-8"))
    found: dict[str, dict[str, Any]] = schema["properties"]["server"]["properties"]["options"]["properties"]
    return found


def pod_of(resources: tuple[Manifest, ...]) -> Manifest:
    """The pod's spec in the Deployment."""
    spec: Manifest = only(resources, "Deployment")["spec"]["template"]["spec"]
    return spec


def server_of(resources: tuple[Manifest, ...]) -> Manifest:
    """The container of the server."""
    [container] = pod_of(resources)["containers"]
    assert isinstance(container, dict)
    return container


def containers(resources: tuple[Manifest, ...]) -> list[Manifest]:
    """All containers, those that come before the server included."""
    pod = pod_of(resources)
    return [*pod.get("initContainers", ()), *pod["containers"]]


def validate(resource: Manifest, version: str) -> None:
    """
    Strictly, by the schemas of Kubernetes; what KEDA and the Prometheus operator define, by short ones of our own,
    which know only the fields that are used here.

    Raises:
        jsonschema.ValidationError: a field is unknown, missing or wrong.
    """
    schema = _CUSTOM / f"{resource['kind'].lower()}.json"
    if schema.exists():
        jsonschema.validate(resource, json.loads(schema.read_text(encoding="utf-8")))
        return
    kubernetes_validate.validate(resource, version, strict=True)


def trivec_commands(resources: tuple[Manifest, ...]) -> Iterator[list[str]]:
    """The arguments of every `trivec` that the pods run."""
    for container in containers(resources):
        if "command" not in container and "trivec" in container["image"]:
            yield container["args"]
        elif "command" in container:
            assert container["command"] == ["/bin/sh", "-euc"]
            script, _, _, *arguments = container["args"]
            assert 'exec trivec pull "$@"' in script
            yield ["pull", *arguments]


def parse(arguments: list[str]) -> dict[str, Any]:
    """
    What the real command line makes of a command's arguments.

    Raises:
        click.UsageError: it does not take them.
    """
    name, *rest = arguments
    command = cli.commands[name]
    # Options may name files that are not here: their values are parsed, nothing is opened.
    with command.make_context(name, rest) as context:
        return dict(context.params)


def variables() -> set[str]:
    """The names of the environment variables of `trivec serve`."""
    found = {each.envvar for each in cli.commands["serve"].params if isinstance(each, click.Option)}
    return {name for name in found if isinstance(name, str)}
