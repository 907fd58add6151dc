"""`python scripts/prepare.py CONFIG.yaml [--section.key VALUE ...]` is `gptmini prepare`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # run from a checkout, installed or not

from gptmini.cli.main import main

sys.exit(main(["prepare", *sys.argv[1:]]))
