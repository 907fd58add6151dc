"""`python scripts/train.py CONFIG.yaml [--section.key VALUE ...] [--resume]` is `gptmini train`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # run from a checkout, installed or not

from gptmini.cli.main import main

sys.exit(main(["train", *sys.argv[1:]]))
