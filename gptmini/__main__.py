"""python -m gptmini: the command line, where the shell does not find gptmini itself."""

import sys

from gptmini.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
