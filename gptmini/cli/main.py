"""The command line: finds the command, turns a user's mistake into one line, and returns the exit code.

Nothing here imports more than the standard library before a command is known, so `gptmini --help` answers at
once; nothing imports torch before a command starts to work.
"""

import contextlib
import os
import sys
from collections.abc import Sequence

from gptmini import __version__
from gptmini.distributed.parent import end_with_torchrun
from gptmini.errors import DamagedError, DivergedError, InUseError, Stopped, UserError
from gptmini.terminal import discard_unwritten, guard_streams, occupy_closed_descriptors

USAGE = f"""gptmini {__version__}: train GPT-2-style language models on your own text

gptmini train CONFIG.yaml [--section.key VALUE ...] [--resume] [--quiet]
gptmini train --data.corpus PATH [--minutes N] [--section.key VALUE ...]
gptmini generate CHECKPOINT [--prompt TEXT] [--max-new-tokens N] ...
gptmini prepare [CONFIG.yaml] [--section.key VALUE ...] [--stats] | --list
gptmini plan [CONFIG.yaml] [--section.key VALUE ...] [--world-size N]
gptmini evaluate CHECKPOINT [--corpus PATH ...] [--memorization]
gptmini export CHECKPOINT [--dtype float32|float16|q8_0] [--output FILE]
gptmini import-nanogpt CKPT.pt OUT [--meta META.pkl]
gptmini report RUN [RUN ...] [--output FILE.html]
gptmini serve [CHECKPOINT or RUN ...] [--port N] [--open]
gptmini runs [FOLDER] [--delete NAME]
gptmini verify RUN_OR_CHECKPOINT
gptmini configs [NAME]
gptmini completion bash|zsh|fish

CHECKPOINT is a run folder (its best checkpoint), one step's folder, or any
Hugging Face GPT-2 directory.

gptmini COMMAND --help lists all options of a command. With a file, as in
gptmini train CONFIG.yaml --help, it shows that file's values as defaults.

gptmini configs lists the configs to start from, or prints one to change:
gptmini configs my_text > mine.yaml

gptmini completion prints a script that completes commands, options and paths.
For bash or zsh: eval "$(gptmini completion bash)"
For fish:        gptmini completion fish | source"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. A user's mistake is one line on standard error."""
    occupy_closed_descriptors()
    end_with_torchrun()
    with guard_streams():
        try:
            _run(*(sys.argv[1:] if argv is None else argv))
            sys.stdout.flush()
        except (UserError, DivergedError, DamagedError, InUseError, Stopped) as error:
            return _fail(error, error.exit_code)
        except BrokenPipeError:  # the reader, such as `head`, has seen enough
            return 141  # as shells report it
        except OSError as error:
            return _fail(f"{error.filename}: {error.strerror}" if error.filename else error, 1)
        except MemoryError as error:  # OutOfMemoryError, or Python's own, which has no text
            return _fail(str(error) or "out of memory", 1)
        except KeyboardInterrupt:
            return 130
        finally:
            discard_unwritten()
    return 0


def _run(name: str = "--help", *args: str) -> None:
    if name in ("--help", "-h", "help"):
        print(USAGE)
        return
    if name == "--version":
        print(f"gptmini {__version__}")
        return
    from gptmini.cli.commands import COMMANDS
    from gptmini.cli.options import print_help, run
    from gptmini.schema import did_you_mean

    if name not in COMMANDS:
        raise UserError(f"unknown command {name}{did_you_mean(name, COMMANDS)}; see gptmini --help")
    if "--help" in args or "-h" in args:
        print_help(name, COMMANDS[name], [arg for arg in args if arg not in ("--help", "-h")])
        return
    run(name, COMMANDS[name], args)


def _fail(error: object, exit_code: int) -> int:
    """Print one line, whatever the error's text holds; returns the exit code."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(error))
    if "TORCHELASTIC_RUN_ID" in os.environ:  # under torchrun, ranks that fail alike print the line once
        from gptmini.distributed.failure import already_reported

        if already_reported(line):
            return exit_code
    with contextlib.suppress(OSError):  # the exit code is what is left to say
        print(f"gptmini: {line}", file=sys.stderr, flush=True)
    return exit_code
