"""Runs the comparison with the official code of SELM: `python -m tests.referee --help`."""

import sys

from handbook_ext.core.errors import UserError
from tests.referee.compare_with_selm import main

try:
    status = main(sys.argv[1:])
except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    status = 2
sys.exit(status)
