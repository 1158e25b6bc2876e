"""The ports to listen on."""

import errno
import socket
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPException
from urllib.request import urlopen

from trivec_server.doctor.finding import Finding, Status
from trivec_server.doctor.program import trivec_serve
from trivec_server.settings import ServeSettings

_HIGHEST_PORT = 65_535
_FIRST_UNPRIVILEGED_PORT = 1024
_ANSWER_TIMEOUT_S = 2.0
_METRICS_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class _Endpoint:
    name: str
    host: str
    port: int
    host_flag: str
    port_flag: str


@dataclass(frozen=True, slots=True)
class _Fault:
    """What is wrong with an endpoint, and the flag of `trivec serve` that mends it with its value."""

    status: Status
    fact: str
    flag: str
    value: str | int


def check_ports(settings: ServeSettings) -> list[Finding]:
    """Whether the gRPC and the metrics port can be bound now. The mend of either mends both."""
    endpoints = [_Endpoint("gRPC port", settings.host, settings.grpc_port, "--host", "--grpc-port")]
    if settings.metrics_port is not None:
        endpoints.append(
            _Endpoint("metrics port", settings.metrics_host, settings.metrics_port, "--metrics-host", "--metrics-port")
        )
    taken = {endpoint.port for endpoint in endpoints}
    looks: list[_Fault | str] = []
    for endpoint in endpoints:
        if looks and endpoint.port and endpoint.port == settings.grpc_port:
            free = _free_port(endpoint.host, endpoint.port, taken)
            fact = f"--grpc-port and --metrics-port are both {endpoint.port}"
            looks.append(_Fault(Status.FAIL, fact, endpoint.port_flag, free))
        else:
            looks.append(_look_at(endpoint, taken))
    faults = [look for look in looks if isinstance(look, _Fault)]
    mend = trivec_serve(settings, {fault.flag: fault.value for fault in faults})
    return [
        Finding(endpoint.name, look.status, look.fact, mend)
        if isinstance(look, _Fault)
        else Finding(endpoint.name, Status.OK, look)
        for endpoint, look in zip(endpoints, looks, strict=True)
    ]


def _look_at(endpoint: _Endpoint, taken: set[int]) -> _Fault | str:
    """What is wrong, or what is right. A free port that is proposed is added to those `taken`."""
    address = f"{endpoint.host}:{endpoint.port}"
    if endpoint.port == 0:
        return f"any free port of {endpoint.host}"
    try:
        error = _bind_error(endpoint.host, endpoint.port)
    except (socket.gaierror, UnicodeError) as fault:
        reason = fault.strerror if isinstance(fault, socket.gaierror) else "it is not a host name"
        fact = f"{endpoint.host_flag} {endpoint.host!r} cannot be resolved: {reason}"
        return _Fault(Status.FAIL, fact, endpoint.host_flag, "127.0.0.1")
    if error is None:
        return f"{address} is free"
    if error.errno == errno.EADDRNOTAVAIL:
        fact = f"{endpoint.host} is not an address of this machine"
        return _Fault(Status.FAIL, fact, endpoint.host_flag, "127.0.0.1")
    free = _free_port(endpoint.host, endpoint.port, taken)
    if error.errno != errno.EADDRINUSE:
        return _Fault(Status.FAIL, f"{address}: {error.strerror}", endpoint.port_flag, free)
    fact = f"{address} is in use{_holder(endpoint.port)}"
    said = _ask_trivec(endpoint)
    status, fact = (Status.FAIL, fact) if said is None else (Status.WARN, f"{fact}: {said}")
    return _Fault(status, fact, endpoint.port_flag, free)


def _ask_trivec(endpoint: _Endpoint) -> str | None:
    """What a Trivec that listens there says of itself; None if what listens there is none, or does not answer."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(endpoint.host, endpoint.host)  # noqa: S104
    target = f"{f'[{host}]' if ':' in host else host}:{endpoint.port}"
    if endpoint.port_flag == "--grpc-port":
        return _ask_health(target)
    try:
        with urlopen(f"http://{target}/metrics", timeout=_ANSWER_TIMEOUT_S) as answer:
            is_trivec = b"trivec_" in answer.read(_METRICS_BYTES)
    except (OSError, HTTPException):
        return None
    return "Trivec already serves there" if is_trivec else None


def _ask_health(target: str) -> str | None:
    from trivec_client import ServingStatus, TrivecClient, TrivecClientError  # noqa: PLC0415 - needs gRPC

    try:
        with TrivecClient(target) as client:
            status = client.health("trivec.v1.EmbeddingService", timeout_s=_ANSWER_TIMEOUT_S)
    except TrivecClientError:
        return None
    if status is ServingStatus.SERVING:
        return "Trivec already serves there"
    return "a Trivec is there already, but has no model ready" if status is ServingStatus.NOT_SERVING else None


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


def _free_port(host: str, after: int, taken: set[int]) -> int:
    """The next port that is free and not `taken`, to which it is added; or 0, for any, if there is none."""
    first = max(after + 1, _FIRST_UNPRIVILEGED_PORT)
    for port in range(first, min(first + 100, _HIGHEST_PORT + 1)):
        if port not in taken and _bind_error(host, port) is None:
            taken.add(port)
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
