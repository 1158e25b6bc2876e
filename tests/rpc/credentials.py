"""Certificates and access files as an operator would write them."""

import json
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import trustme
from trivec_server.settings import TlsSettings


def authorization(token: str) -> list[tuple[str, str]]:
    """The metadata that shows a token."""
    return [("authorization", f"Bearer {token}")]


class AccessFile:
    """An access file; each identity's token is its name with `-token` behind it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, **identities: dict[str, Any]) -> "AccessFile":
        """Replaces all entries; without scopes an entry may infer, and without a proof it has a token."""
        lines: list[str] = []
        for name, given in identities.items():
            entry = {"name": name, "scopes": ["infer"], **given}
            if "certificate" not in given and "token_sha256" not in given:
                entry["token_sha256"] = sha256(token_of(name).encode()).hexdigest()
            lines += ["[[identity]]", *(f"{key} = {json.dumps(value)}" for key, value in entry.items()), ""]
        self.write_text("\n".join(lines))
        return self

    def write_text(self, text: str) -> None:
        """Replaces the file in one step, as an operator should."""
        _replace(self.path, text.encode())


def token_of(name: str) -> str:
    return f"{name}-token"


@dataclass
class Authority:
    """A certificate authority, and the files that it has written."""

    directory: Path
    name: str = "authority"
    authority: trustme.CA = field(default_factory=trustme.CA)

    @property
    def pem(self) -> bytes:
        return self.authority.cert_pem.bytes()

    @property
    def file(self) -> Path:
        path = self.directory / f"{self.name}.pem"
        path.write_bytes(self.pem)
        return path

    def server(
        self, *, client_ca: Path | None = None, days: float = 365, begins: datetime | None = None
    ) -> TlsSettings:
        """Writes a server's pair, the certificate first."""
        pair = self.pair(days=days, begins=begins)
        certificate, key = self.directory / "server.pem", self.directory / "server.key"
        _replace(certificate, pair.certificate)
        _replace(key, pair.key)
        return TlsSettings(certificate=certificate, private_key=key, client_ca=client_ca)

    def pair(
        self, *names: str, common_name: str | None = None, days: float = 365, begins: datetime | None = None
    ) -> "Pair":
        """A pair that ends in so many days; in less than 0 it has ended. It has begun long ago unless that is given."""
        now = datetime.now(UTC).replace(tzinfo=None)
        issued = self.authority.issue_cert(
            *(names or ("localhost", "127.0.0.1")),
            common_name=common_name,
            not_before=now - timedelta(days=1000) if begins is None else begins.replace(tzinfo=None),
            not_after=now + timedelta(days=days),
        )
        chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
        return Pair(chain, issued.private_key_pem.bytes())

    def channel(self, target: str, pair: "Pair | None" = None) -> grpc.aio.Channel:
        """A channel of its own connection that trusts this authority."""
        credentials = grpc.ssl_channel_credentials(
            self.pem, None if pair is None else pair.key, None if pair is None else pair.certificate
        )
        return grpc.aio.secure_channel(target, credentials, options=[("grpc.use_local_subchannel_pool", 1)])


@dataclass(frozen=True)
class Pair:
    """PEM."""

    certificate: bytes
    key: bytes


def _replace(path: Path, content: bytes) -> None:
    beside = path.with_name(f".{path.name}.new")
    beside.write_bytes(content)
    os.replace(beside, path)  # noqa: PTH105 - as an operator's script does
