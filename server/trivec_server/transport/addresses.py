"""The addresses that the server listens on: which are of this machine alone, and which can be bound."""

import socket
from ipaddress import IPv6Address, ip_address

from trivec_server.errors import CommandError
from trivec_server.logs import get_logger
from trivec_server.settings import ControlMode, Management, ServeSettings

_log = get_logger(__name__)


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


def check_addresses(settings: ServeSettings) -> bool:
    """
    Whether the address of the services is loopback. Refuses to send plain text beyond this machine without leave, and
    says what is risky.

    Raises:
        CommandError: an address is not loopback and must be, or cannot be resolved.
    """
    is_local = _check_address(settings, settings.host, "--host")
    if settings.access_file is not None and settings.tls is None and not is_local:
        _log.warning("tokens arrive as plain text: whoever is on the way can take them; TLS keeps them secret")
    if settings.management_port is not None:
        if not _check_address(settings, settings.management_host, "--management-host"):
            asks = settings.tls is not None and settings.tls.client_ca is not None
            who = "whoever has a certificate of the authority in --tls-client-ca and" if asks else "whoever"
            _log.warning(
                f"{who} reaches the management port may load and unload models, and the access file says nothing of "
                "it: keep it within reach of few",
                host=settings.management_host,
            )
    elif is_local and settings.access_file is None and settings.management is not Management.OFF:
        _warn_of_proxies(settings)
    return is_local


def _warn_of_proxies(settings: ServeSettings) -> None:
    if settings.model_control_mode is ControlMode.EXPLICIT:
        _log.warning(
            "whoever reaches this address may load and unload models; through a proxy on this machine that is "
            "everybody it serves: then give --management off, --management-port or --access-file",
            host=settings.host,
        )


def _check_address(settings: ServeSettings, host: str, flag: str) -> bool:
    try:
        is_local = is_loopback(host)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a host name"
        raise CommandError(f"{flag} {host!r} cannot be resolved: {reason}") from error
    if not is_local and settings.tls is None and not settings.allow_insecure:
        raise CommandError(
            f"{flag} {host} is not loopback, and without TLS whoever is on the way can read what is sent: give "
            "--tls-certificate and --tls-private-key, or --allow-insecure behind a proxy that ends TLS"
        )
    return is_local


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
