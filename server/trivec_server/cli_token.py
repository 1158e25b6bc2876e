"""`trivec token`."""

import secrets

import click

from trivec_server.cli_options import option
from trivec_server.errors import CommandError

_TOKEN_BYTES = 32
_PREFIX = "trivec_"
"""By which a token that has got into a file or a log is found."""


@click.command()
@click.argument("name")
@option(
    "--scope",
    "What it may do: ask models (infer), manage the server (admin). May be repeated.",
    type=click.Choice(["infer", "admin"]),
    multiple=True,
    default=["infer"],
)
def token(name: str, scope: tuple[str, ...]) -> None:
    """
    Make a token for NAME, and the entry of the access file that knows it.

    The token is shown this once; the file holds its SHA-256 alone.
    """
    from trivec_server.transport.access_file import is_identity_name, token_digest  # noqa: PLC0415 - for the server

    if not is_identity_name(name):
        raise CommandError("NAME must be 1 to 64 letters, digits or any of . _ @ -, and begin with a letter or digit")
    secret = _PREFIX + secrets.token_urlsafe(_TOKEN_BYTES)
    scopes = ", ".join(f'"{each}"' for each in dict.fromkeys(scope))
    click.echo(f"Token, shown this once: {secret}")
    click.echo("Entry for the file of --access-file:\n")
    click.echo(f'[[identity]]\nname = "{name}"\ntoken_sha256 = "{token_digest(secret).hex()}"\nscopes = [{scopes}]')
