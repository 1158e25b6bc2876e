"""The committed stubs suit every version that the package may be installed with."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
STUBS = ROOT / "protos" / "python"


def lowest_version(name: str) -> Version:
    """The lowest version that pyproject.toml allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (requirement,) = [each for each in map(Requirement, project["dependencies"]) if each.name == name]
    (lowest,) = [Version(each.version) for each in requirement.specifier if each.operator == ">="]
    return lowest


def test_messages_work_with_the_lowest_protobuf() -> None:
    paths = list(STUBS.rglob("*_pb2.py"))
    assert len(paths) == 3
    for path in paths:
        generator = re.search(r"^# Protobuf Python Version: (\S+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert generator
        assert Version(generator[1]) <= lowest_version("protobuf")


def test_services_work_with_the_lowest_grpcio() -> None:
    (path,) = STUBS.rglob("*_pb2_grpc.py")
    generator = re.search(r"^GRPC_GENERATED_VERSION = '(\S+)'$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert generator
    assert Version(generator[1]) <= lowest_version("grpcio")
