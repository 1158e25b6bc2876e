"""Changes to the config.pbtxt of a model that a test serves."""

import re
from pathlib import Path


def set_backend(model_dir: Path, engine: str) -> None:
    """Lets a model be run by one engine, whatever is fastest on the machine."""
    config = model_dir / "config.pbtxt"
    text = config.read_text(encoding="utf-8")
    text, found = re.subn(r'^backend: ".*"$', f'backend: "{engine}"', text, flags=re.MULTILINE)
    assert found == 1, f"{config} names no backend"
    config.write_text(text, encoding="utf-8")


def set_parameter(model_dir: Path, key: str, value: str) -> None:
    """Adds a parameter that is not there yet."""
    with (model_dir / "config.pbtxt").open("a", encoding="utf-8") as config:
        config.write(f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n')


def rename(model_dir: Path) -> None:
    """Gives a model that was copied the name of its directory."""
    config = model_dir / "config.pbtxt"
    text = re.sub(r'^name: ".*"$', f'name: "{model_dir.name}"', config.read_text(encoding="utf-8"), flags=re.MULTILINE)
    config.write_text(text, encoding="utf-8")
