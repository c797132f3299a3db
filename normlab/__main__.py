"""The program `normlab`, also as `python -m normlab`: it says what to install where the command line is not."""

from __future__ import annotations

import sys
from typing import NoReturn

from normlab.errors import UsageError, require


def main() -> NoReturn:
    """Run the command line and exit with its code; 2, and one line, where the extra `study` is not installed."""
    try:
        require("normlab", "study", "typer", "pydantic", "rich")
    except UsageError as e:
        print(e, file=sys.stderr)
        sys.exit(e.exit_code)
    try:
        from normlab import cli
        from normlab.errors.targets import notice_exits
    except KeyboardInterrupt:  # importing takes a moment
        sys.exit(130)
    notice_exits()  # to the end of the process: also of code that runs when Python ends
    cli.main()


if __name__ == "__main__":
    main()
