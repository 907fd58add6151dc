"""`python scripts/evaluate.py CHECKPOINT [--option VALUE ...]` is `gptmini evaluate`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # run from a checkout, installed or not

from gptmini.cli.main import main

sys.exit(main(["evaluate", *sys.argv[1:]]))
