"""The command line. `main` is the entry point; nothing else of the library imports this package."""

import sys


def main() -> None:
    """Run `driftbridge` with the arguments of the process."""
    try:
        from driftbridge.cli.app import app
    except ModuleNotFoundError as error:
        print(f"error: {error}. Install it by: pip install 'driftbridge[all]'", file=sys.stderr)
        raise SystemExit(2) from error
    app()
