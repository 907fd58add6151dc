"""`python scripts/generate.py CHECKPOINT [--option VALUE ...]` is `gptmini generate`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # run from a checkout, installed or not

from gptmini.cli.main import main

sys.exit(main(["generate", *sys.argv[1:]]))
