"""The console command `trivec`, and `python -m trivec_server`."""

import sys


def main() -> None:
    """Runs the command line; without its packages, says which extra brings them."""
    try:
        from trivec_server.cli import run  # noqa: PLC0415 - the base install has no click
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        sys.exit("error: the trivec command needs its packages: pip install 'trivec[server]'")
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
