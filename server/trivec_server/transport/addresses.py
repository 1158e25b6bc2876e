"""The addresses that the server listens on: which are of this machine alone, and which can be bound."""

import socket
from ipaddress import IPv6Address, ip_address

from trivec_server.errors import CommandError


def is_loopback(host: str) -> bool:
    """
    Whether all addresses of a host name are this machine's loopback.

    Raises:
        OSError: the name cannot be resolved.
    """
    # gRPC takes an empty name for all addresses.
    if not host:
        return False
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return all(_is_loopback(str(address[0])) for _, _, _, _, address in found)


def _is_loopback(text: str) -> bool:
    address = ip_address(text.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback


def refuse_plaintext(host: str, flag: str) -> None:
    """
    Refuses to send plain text beyond this machine.

    Raises:
        CommandError: the host is not loopback, or cannot be resolved. It names the `flag`.
    """
    try:
        is_safe = is_loopback(host)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a host name"
        raise CommandError(f"{flag} {host!r} cannot be resolved: {reason}") from error
    if not is_safe:
        raise CommandError(
            f"{flag} {host} is not loopback, and without TLS whoever is on the way can read what is sent: give "
            "--tls-certificate and --tls-private-key, or --allow-insecure behind a proxy that ends TLS"
        )


def check_bindable(host: str, port: int) -> None:
    """
    Asks the system for the address, because gRPC tells the reason of a refusal to nobody but stderr.

    Raises:
        OSError: nothing can listen there.
    """
    refusal = OSError("no such address")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
                return
        except OSError as error:
            refusal = error
    raise refusal
