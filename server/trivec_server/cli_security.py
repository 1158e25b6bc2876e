"""`trivec serve`: TLS, who may call what, and what is told of the server and its requests."""

from pathlib import Path
from typing import Any

import click

from trivec_server.cli_options import option, options, switch
from trivec_server.settings import Management, ServeSettings, TlsSettings

_DEFAULTS = ServeSettings()
_FILE = click.Path(path_type=Path)

_FILES = (
    option(
        "--tls-certificate",
        "PEM file of the server's certificate and those between it and the authority; turns TLS on. A changed file "
        "is taken up while the server runs.",
        type=_FILE,
    ),
    option("--tls-private-key", "PEM file of its private key, without a passphrase.", type=_FILE),
    option(
        "--tls-client-ca",
        "PEM file of authorities: clients must show a certificate of one of them.",
        type=_FILE,
    ),
    switch(
        "--allow-insecure",
        "Listen on an address that is not loopback without TLS: behind a proxy that ends it, or on a network of "
        "your own.",
        default=_DEFAULTS.allow_insecure,
    ),
    option(
        "--access-file",
        "TOML file of who may call: tokens (as SHA-256) or certificates, scopes, limits. A changed file is taken "
        "up while the server runs. See `trivec token`. [default: whoever reaches the port]",
        type=_FILE,
    ),
)
_CALLS = (
    option(
        "--management",
        "Calls that load and unload models or change settings. auto: over --management-port, or with scope admin, "
        "or from this machine where there is neither. off: refused.",
        type=click.Choice([choice.value for choice in Management]),
        default=_DEFAULTS.management.value,
    ),
    option("--management-host", "The address of the port for management.", default=_DEFAULTS.management_host),
    option(
        "--management-port",
        "A port for management alone; whoever reaches it may manage. 0: any free one. [default: none]",
        type=click.IntRange(0, 65535),
    ),
    switch("--reflection", "Describe the services to clients such as grpcurl.", default=_DEFAULTS.reflection),
    switch(
        "--log-texts",
        "Log the texts of every request, for debugging. They are logged nowhere otherwise.",
        default=_DEFAULTS.log_texts,
    ),
)
security_options = options(_FILES, _CALLS)
access_options = options(_FILES)
"""Those of them that name files, or do without."""


def security_settings(given: dict[str, Any]) -> dict[str, Any]:
    """
    The fields of ServeSettings that are not what their option was given, which it takes out of `given`.

    Raises:
        click.BadParameter: an option is of no use without, or with, another.
    """
    if given["management_port"] is not None and given["management"] == Management.OFF.value:
        raise click.BadParameter("is of no use with --management off", param_hint="--management-port")
    return {"management": Management(given.pop("management")), **access_settings(given)}


def access_settings(given: dict[str, Any]) -> dict[str, Any]:
    """
    As `security_settings`, for `access_options`.

    Raises:
        click.BadParameter: a file is of no use without another.
    """
    certificate, key, client_ca = (given.pop(f"tls_{name}") for name in ("certificate", "private_key", "client_ca"))
    if certificate is None and (key is not None or client_ca is not None):
        lone = "--tls-private-key" if key is not None else "--tls-client-ca"
        raise click.BadParameter("needs --tls-certificate beside it", param_hint=lone)
    if certificate is not None and key is None:
        raise click.BadParameter("needs --tls-private-key beside it", param_hint="--tls-certificate")
    tls = None if certificate is None else TlsSettings(certificate=certificate, private_key=key, client_ca=client_ca)
    return {"tls": tls}
