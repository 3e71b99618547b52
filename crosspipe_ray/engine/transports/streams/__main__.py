"""``python -m crosspipe_ray.engine.transports.streams FOLDER`` makes the credentials of a run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from crosspipe_ray.engine.transports.streams.issuing import issue
from crosspipe_ray.errors import ConfigError


def main() -> int:
    """Makes a folder with the certificate, its key and the token of one run."""
    parser = argparse.ArgumentParser(
        prog="python -m crosspipe_ray.engine.transports.streams", description=main.__doc__
    )
    parser.add_argument("folder", type=Path, help="to make; copy it to the hosts of all ranks")
    folder: Path = parser.parse_args().folder
    try:
        folder.mkdir(mode=0o700, parents=True)
        issue(folder)
    except FileExistsError:
        print(f"{folder}: is there already; every run has a folder of its own", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{folder}: {error.strerror}", file=sys.stderr)
        return 2
    except ConfigError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
