"""The Dockerfile, as far as it can be checked without a build; `make image-check` builds and runs it."""

import json
import re
import tomllib
from fnmatch import fnmatch

import pytest

from tests.deploy.dockerfile import ROOT, instructions, pairs, stages
from tests.deploy.manifests import parse, variables

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_targets_are_cpu_and_cuda_and_who_names_none_gets_cpu() -> None:
    assert {"cpu", "cuda"} <= set(stages())
    assert list(stages())[-1] == "cpu"


def test_the_base_is_one_point_release_and_its_label_says_so() -> None:
    arguments = [each.text for each in instructions() if each.name == "ARG" and not each.stage]
    release = next(text.removeprefix("DEBIAN=") for text in arguments if text.startswith("DEBIAN="))
    assert re.fullmatch(r"\d+\.\d+-slim", release)
    assert stages()["base"] == "docker.io/library/debian:${DEBIAN}${DEBIAN_DIGEST}"
    assert pairs("LABEL")["org.opencontainers.image.base.name"] == f"docker.io/library/debian:{release}"


def test_every_stage_is_made_from_the_one_base() -> None:
    found = stages()
    assert all(source in found for stage, source in found.items() if stage != "base")


def copied() -> list[str]:
    texts = [each.text for each in instructions() if each.name == "COPY" and not each.text.startswith("--from")]
    return [source for text in texts for source in text.split()[:-1]]


@pytest.mark.parametrize("source", copied())
def test_what_is_copied_is_there_and_not_ignored(source: str) -> None:
    assert (ROOT / source).exists()
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").split() if line.startswith("!")]
    assert source in kept


def test_nothing_else_is_sent_to_the_build() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert lines[1] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == set(copied())
    assert any(fnmatch("server/trivec_server/__pycache__", line) for line in lines)


def installations() -> list[str]:
    return [each.text for each in instructions() if each.name == "RUN" and " -c constraints" in each.text]


@pytest.mark.parametrize("stage", ["cpu", "cuda"])
def test_the_packages_of_a_target_are_pinned_extras_of_the_project(stage: str) -> None:
    text = next(each.text for each in instructions() if each.stage == f"build-{stage}" and "trivec[" in each.text)
    found = re.search(r"-c (\S+) +\"trivec\[([\w,]+)\] @", text)
    assert found
    assert found[1] == ("constraints-torch.txt" if stage == "cuda" else "constraints.txt")
    assert set(found[2].split(",")) <= set(PROJECT["optional-dependencies"])
    assert ("torch" in found[2].split(",")) is (stage == "cuda")


def test_whatever_asks_the_package_index_can_be_given_its_settings_without_leaving_them_in_the_image() -> None:
    assert len(installations()) == 3
    for text in installations():
        assert "--mount=type=secret,id=pip.conf,target=/etc/pip.conf" in text
        assert "--mount=type=secret,id=ca.crt,target=/run/secrets/ca.crt" in text


def test_the_label_of_the_version_is_the_project_s() -> None:
    assert pairs("LABEL")["org.opencontainers.image.version"] == PROJECT["version"]


@pytest.mark.parametrize("name", ["README.md", "docs/deployment.md"])
def test_the_image_that_the_docs_build_is_that_of_this_version(name: str) -> None:
    named = set(re.findall(r"\btrivec:(\d[\d.]*)", (ROOT / name).read_text(encoding="utf-8")))
    assert named == {PROJECT["version"]}


def test_every_variable_of_the_server_is_one_that_it_reads_with_a_value_that_it_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = {key: value for key, value in pairs("ENV").items() if key.startswith("TRIVEC_")}
    assert set(own) <= variables()
    for key, value in own.items():
        monkeypatch.setenv(key, value)
    assert parse(["serve"])["host"] == "0.0.0.0"  # noqa: S104 - all of the container's addresses


def test_the_image_runs_as_a_user_without_a_name_to_look_up_and_by_no_shell() -> None:
    by_name = {each.name: each.text for each in instructions() if each.stage == "runtime"}
    assert by_name["USER"] == "10001:10001"
    assert json.loads(by_name["ENTRYPOINT"]) == ["/usr/bin/tini", "--", "/opt/trivec/bin/trivec"]
    assert parse(json.loads(by_name["CMD"]))
    assert json.loads(by_name["HEALTHCHECK"].partition(" CMD ")[2])


def test_the_ports_are_those_that_the_server_listens_on() -> None:
    exposed = next(each.text for each in instructions() if each.name == "EXPOSE")
    options = parse(["serve"])
    assert exposed.split() == [str(options["grpc_port"]), str(options["metrics_port"])]
