"""The console command `trivec`, and `python -m trivec_server`."""

import os
import sys


def main() -> None:
    """Runs the command line; without its packages, says which extra brings them."""
    # What gRPC's core writes to stderr by itself is said again in a line of our own. It reads this when first imported.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        from trivec_server.cli import run  # noqa: PLC0415 - the base install has no click
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in {"", "trivec_server", "trivec_client"}:
            raise
        sys.exit(
            f"error: the trivec command needs the package {package}: pip install 'trivec[cli]' for the commands that "
            "call a server, 'trivec[server]' for all"
        )
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
