"""`python -m abcfx`: the command line."""

import sys

from abcfx.cli import main

sys.exit(main())
