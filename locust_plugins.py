"""What Locust imports, if there is a module of this name, before it reads its command line: its one hook for `--help`.

The distribution `locust-plugins`, where it is installed, comes first: then `--help` lists Locust's options alone.
"""

import sys

from loadtest.scenario.command_help import load_for_help

load_for_help(sys.argv[1:])
