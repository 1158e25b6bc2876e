"""Where the servers are: what callers name, checked, and as a name that gRPC resolves."""

import ipaddress
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, TypeAlias

DEFAULT_TARGET = "127.0.0.1:8001"

_GRPC_NAMES = ("dns:", "unix:", "unix-abstract:", "ipv4:", "ipv6:", "vsock:", "xds:")
"""How names begin that gRPC itself resolves; they say where the server is in ways of their own."""
_ADDRESSES = ("ipv4:", "ipv6:")
_LOCAL_NAMES = ("unix:", "unix-abstract:", "vsock:")
"""Those of them that lead to no network."""
_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
_HOST_AND_PORT = re.compile(r"(\[[^][/]+\]|[^][:/,\s]+):(\d{1,5})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Targets:
    """
    One target or several, as given: `host:port`, or, where it is one, also a name with a scheme of gRPC.

    Several are one cluster: each can answer every call.
    """

    names: tuple[str, ...]

    @classmethod
    def parse(cls, given: str | Sequence[str]) -> Self:
        """
        Checks what a caller names.

        Raises:
            ValueError: none, one twice, or one that gRPC would try in vain, or at port 443.
        """
        names = (given,) if isinstance(given, str) else tuple(given)
        if not names:
            raise ValueError("target: none is given; name one at least, as host:port")
        for name in names:
            if name.startswith(_GRPC_NAMES):
                if len(names) > 1:
                    raise ValueError(f"target: {name!r} cannot stand in a list; give it alone, or give host:port")
            elif not _is_host_and_port(name):
                raise ValueError(f"target: {name!r} is not host:port, such as {DEFAULT_TARGET} or [::1]:8001")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"target: {twice[0]!r} is given twice")
        return cls(names)

    def __str__(self) -> str:
        return ",".join(self.names)

    @property
    def may_be_several(self) -> bool:
        """Whether more than one server can be behind it: a list, or a name that gRPC looks up in DNS."""
        first = self.names[0]
        return len(self.names) > 1 or first.startswith("dns:") or (first.startswith(_ADDRESSES) and "," in first)

    @property
    def is_local(self) -> bool:
        """Whether what is sent stays on this machine: loopback addresses, the name localhost, Unix sockets."""
        return all(_is_local(name) for name in self.names)

    @property
    def host(self) -> str | None:
        """The one host that all of them name; None where they differ, or gRPC knows it."""
        hosts = {_split(name)[0] for name in self.names if not name.startswith(_GRPC_NAMES)}
        return hosts.pop() if len(hosts) == 1 else None

    def resolve(self) -> str:
        """
        What gRPC is to connect to. Of one target, that itself; of several, the addresses of all of them.

        Raises:
            OSError: a host of several is not known now; says which.
        """
        if len(self.names) == 1:
            return self.names[0]
        addresses = dict.fromkeys(address for name in self.names for address in _look_up(name))
        if all(ip.version == 4 for ip, _ in addresses):
            return "ipv4:" + ",".join(f"{ip}:{port}" for ip, port in addresses)
        # gRPC takes addresses of one family; those of IPv4 have a form in the other.
        return "ipv6:" + ",".join(f"[{_in_ipv6(ip)}]:{port}" for ip, port in addresses)


def split_targets(text: str) -> list[str]:
    """Targets with commas between, as a command line has them; a name with a scheme of gRPC is one."""
    return [text] if text.startswith(_GRPC_NAMES) else [name.strip() for name in text.split(",")]


def _is_host_and_port(name: str) -> bool:
    match = _HOST_AND_PORT.fullmatch(name)
    return match is not None and 0 < int(match[2]) < 65536


def _split(name: str) -> tuple[str, int]:
    host, _, port = name.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _look_up(name: str) -> list[tuple[_Address, int]]:
    """
    The addresses of `host:port`.

    Raises:
        OSError: the host is not known.
    """
    host, port = _split(name)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise OSError(f"target {name}: {error.strerror}") from None
    return [(ipaddress.ip_address(address[0]), port) for *_, address in found]


def _in_ipv6(ip: _Address) -> _Address:
    return ip if ip.version == 6 else ipaddress.IPv6Address(f"::ffff:{ip}")


def _is_local(name: str) -> bool:
    if name.startswith(_LOCAL_NAMES):
        return True
    if name.startswith(_ADDRESSES):
        return all(_is_local(address) for address in name[5:].split(","))
    if name.startswith("dns:"):
        name = name.removeprefix("dns:").rpartition("/")[2]
    host = _split(name)[0] if _is_host_and_port(name) else name
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
