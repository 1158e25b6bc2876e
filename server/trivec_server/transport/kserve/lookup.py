"""From a request's model name and version to what serves it, in Triton's words."""

import re

from trivec_server.errors import InvalidTensor, NotFound, TrivecError, Unavailable
from trivec_server.repository.registry import Registry, ServedVersion, State, VersionRecord

NEWEST = -1
_LEADING_NUMBER = re.compile(r"[ \t\n\v\f\r]*([+-]?)0*([0-9]*)")
_MAX_DIGITS = 19
_ALLOWED = "version should be an integral value > 0"


def parse_version(text: str) -> int:
    """
    The version that a request names, NEWEST where it names none. As in Triton, what follows the number is ignored.

    Raises:
        InvalidTensor: the text does not begin with a number, or the number is negative or beyond 64 bits.
    """
    if not text:
        return NEWEST
    match = _LEADING_NUMBER.match(text)
    digits = match[2] if match else ""
    is_number = match is not None and match.end() > match.end(1)
    if not is_number or len(digits) > _MAX_DIGITS or int(digits or "0") >= 1 << 63:
        raise InvalidTensor(
            f"failed to get model version from specified version string '{text}' (details: stol), {_ALLOWED}"
        )
    if match is not None and match[1] == "-" and digits:
        raise InvalidTensor(f"invalid model version specified '{text}' , {_ALLOWED}")
    return int(digits or "0")


class Lookup:
    """Finds versions in the registry. A name has to be given: Triton has no default model."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def ready(self, name: str, version_text: str) -> ServedVersion:
        """
        The version that a request is for: the newest that serves, where none is named.

        Raises:
            InvalidTensor: the version is no number.
            NotFound: there is no such model or version, or no version of the model is ready.
            Unavailable: the version is known and not ready.
        """
        version = parse_version(version_text)
        if name and version:
            try:
                return self._registry.resolve_any(name, 0 if version == NEWEST else version)
            except TrivecError as error:
                raise self._not_ready(name, version) from error
        raise self._not_ready(name, version)

    def ready_versions(self, name: str, version_text: str) -> list[ServedVersion]:
        """
        The versions of a model that are ready, ascending, or the one asked for.

        Raises:
            As `ready`.
        """
        asked = self.ready(name, version_text)
        if version_text:
            return [asked]
        return [record.served for record in self._ready_records(name) if record.served is not None]

    def is_ready(self, name: str, version_text: str) -> bool:
        """
        Whether a version serves, or the newest that is ready; False where there is none.

        Raises:
            InvalidTensor: the version is no number.
        """
        version = parse_version(version_text)
        if not name:
            return False
        found = [record for record in self._ready_records(name) if version in (NEWEST, record.key.version)]
        return bool(found) and found[-1].serves

    def ready_for_statistics(self, name: str, version_text: str) -> list[ServedVersion]:
        """
        The versions that statistics are asked of: an empty name stands for all models.

        Raises:
            InvalidTensor: the version is no number, or there is no such model or version that is ready.
        """
        version = parse_version(version_text)
        records = self._ready_records(name)
        if name and not records:
            raise InvalidTensor(f"requested model '{name}' is not available")
        if name and version != NEWEST:
            records = [record for record in records if record.key.version == version]
            if not records:
                raise InvalidTensor(f"requested model version is not available for model '{name}'")
        return [record.served for record in records if record.served is not None]

    def _ready_records(self, name: str) -> list[VersionRecord]:
        return [record for record in self._registry.records(name or None) if record.state is State.READY]

    def _not_ready(self, name: str, version: int) -> TrivecError:
        """Why there is nothing to serve a request with."""
        known = self._registry.records(name)
        unknown = "Request for unknown model: "
        if not known:
            return NotFound(f"{unknown}'{name}' is not found")
        if version == NEWEST:
            return NotFound(f"{unknown}'{name}' has no available versions")
        if any(record.key.version == version for record in known if version):
            return Unavailable(f"{unknown}'{name}' version {version} is not at ready state")
        return NotFound(f"{unknown}'{name}' version {version} is not found")
