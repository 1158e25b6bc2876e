"""The ports to listen on."""

import errno
import socket
from contextlib import closing
from dataclasses import dataclass

from trivec_server.doctor.finding import Finding, Status
from trivec_server.doctor.program import trivec_serve
from trivec_server.settings import ServeSettings

_HIGHEST_PORT = 65_535
_FIRST_UNPRIVILEGED_PORT = 1024


@dataclass(frozen=True, slots=True)
class _Endpoint:
    name: str
    host: str
    port: int
    host_flag: str
    port_flag: str


def check_ports(settings: ServeSettings) -> list[Finding]:
    """Whether the gRPC and the metrics port can be bound now."""
    endpoints = [_Endpoint("gRPC port", settings.host, settings.grpc_port, "--host", "--grpc-port")]
    if settings.metrics_port is not None:
        endpoints.append(
            _Endpoint("metrics port", settings.metrics_host, settings.metrics_port, "--metrics-host", "--metrics-port")
        )
    wanted = {endpoint.port for endpoint in endpoints}
    findings = [_check_endpoint(settings, endpoint, wanted) for endpoint in endpoints]
    if len(wanted) < len(endpoints) and settings.grpc_port:
        free = _free_port(settings.metrics_host, settings.grpc_port, wanted)
        mend = trivec_serve(settings, "--metrics-port", free)
        fact = f"--grpc-port and --metrics-port are both {settings.grpc_port}"
        findings.append(Finding("metrics port", Status.FAIL, fact, mend))
    return findings


def _check_endpoint(settings: ServeSettings, endpoint: _Endpoint, wanted: set[int]) -> Finding:
    address = f"{endpoint.host}:{endpoint.port}"
    if endpoint.port == 0:
        return Finding(endpoint.name, Status.OK, f"any free port of {endpoint.host}")
    local = trivec_serve(settings, endpoint.host_flag, "127.0.0.1")
    try:
        error = _bind_error(endpoint.host, endpoint.port)
    except (socket.gaierror, UnicodeError) as fault:
        reason = fault.strerror if isinstance(fault, socket.gaierror) else "it is not a host name"
        fact = f"{endpoint.host_flag} {endpoint.host!r} cannot be resolved: {reason}"
        return Finding(endpoint.name, Status.FAIL, fact, local)
    if error is None:
        return Finding(endpoint.name, Status.OK, f"{address} is free")
    free = _free_port(endpoint.host, endpoint.port, wanted)
    other_port = trivec_serve(settings, endpoint.port_flag, free)
    if error.errno == errno.EADDRINUSE:
        return Finding(endpoint.name, Status.FAIL, f"{address} is in use{_holder(endpoint.port)}", other_port)
    if error.errno == errno.EADDRNOTAVAIL:
        fact = f"{endpoint.host} is not an address of this machine"
        return Finding(endpoint.name, Status.FAIL, fact, local)
    return Finding(endpoint.name, Status.FAIL, f"{address}: {error.strerror}", other_port)


def _bind_error(host: str, port: int) -> OSError | None:
    """
    Why the port cannot be bound at the host's addresses; an address that this machine lacks counts only if it lacks
    all of them.

    Raises:
        OSError: the host cannot be resolved.
    """
    errors: list[OSError | None] = []
    for family, kind, _, _, address in socket.getaddrinfo(
        host.strip("[]") or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    ):
        try:
            with closing(socket.socket(family, kind)) as probe:
                # As servers do: connections that are being closed do not hold the port.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(address)
        except OSError as error:
            errors.append(error)
        else:
            errors.append(None)
    missing = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
    grave = [error for error in errors if error is not None and error.errno not in missing]
    if grave:
        return grave[0]
    return None if None in errors else errors[0]


def _free_port(host: str, taken: int, wanted: set[int]) -> int:
    """The next port that is free and not wanted for something else, or 0, for any, if there is none."""
    first = max(taken + 1, _FIRST_UNPRIVILEGED_PORT)
    for port in range(first, min(first + 100, _HIGHEST_PORT + 1)):
        if port not in wanted and _bind_error(host, port) is None:
            return port
    return 0


def _holder(port: int) -> str:
    """` by process 123 (name)`, where the system tells."""
    try:
        import psutil  # noqa: PLC0415 - without it the finding lacks a name, no more
    except ImportError:
        return ""
    try:
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
            if listens and connection.pid:
                return f" by process {connection.pid} ({psutil.Process(connection.pid).name()})"
    except psutil.Error:
        return ""
    return ""
