"""A terminal session with a model: type text, and the model continues it.

The session is one growing text. A typed line is appended to it as a new line, and the model continues from
there: the screen shows what the model reads. Lines that begin with a slash are commands.
"""

import contextlib
import time
from collections.abc import Callable, Collection

from gptmini.data.tokenizers import Tokenizer
from gptmini.errors import UserError
from gptmini.generation.sampling import SamplingOptions
from gptmini.generation.streaming import StreamDecoder, continue_texts, encode_prompt
from gptmini.model import GPT
from gptmini.schema import format_value, validate
from gptmini.yaml_io import parse_yaml

HELP = """\
Type the beginning of a text; the model continues it. Enter alone lets it write more.
Ctrl-C stops the text, Ctrl-D ends the session.

/clear              forget the text so far
/keep on|off        whether the next line joins the text so far (on) or begins a new one
/speed on|off       whether to show tokens per second after each text
/set OPTION VALUE   change temperature, top_k, top_p, min_p or repetition_penalty
/options            show how the next token is chosen
/quit               end the session
//...               a line that begins with one slash"""


class Session:
    """The text so far, and how it is continued."""

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        text: str = "",
        *,
        max_new_tokens: int,
        seed: int | None = None,
        stop: Collection[str] = (),
        parse_special: bool = False,
        allow_invalid_utf8: bool = False,
        write: Callable[[str], object] = lambda text: print(text, end="", flush=True),
        **sampling: float | None,
    ) -> None:
        """`text` is what to begin with. Continuation n samples with seed + n, from 0."""
        self.model, self.tokenizer, self.text = model, tokenizer, text
        self.max_new_tokens, self.seed, self.stop = max_new_tokens, seed, stop
        self.parse_special, self.allow_invalid_utf8 = parse_special, allow_invalid_utf8
        self.options = validate(SamplingOptions, sampling, "sampling")
        self.write = write
        self.keep = True
        self.show_speed = False
        self.continuations = 0

    def run(self, read: Callable[[str], str] = input) -> None:
        """Answer lines until Ctrl-D, /quit or the end of standard input."""
        with contextlib.suppress(ImportError):  # Windows has none
            import readline  # noqa: F401  # gives `input` line editing and a history
        self.write(f"/help lists the commands.\n{self.text}")
        while True:
            try:
                line = read("> ")
                if line.strip() == "/quit":
                    return
                self.answer(line)
            except UserError as error:
                self.write(f"{error}\n")
            except KeyboardInterrupt:
                self.write("\n")
            except EOFError:
                self.write("\n")
                return

    def answer(self, line: str) -> None:
        """Run a command, or continue the text that a line gives."""
        if line.startswith("/") and not line.startswith("//"):
            self.command(*line[1:].split())
            return
        line = line[1:] if line.startswith("//") else line
        if line and self.keep and self.text:
            line = f"{self.text}\n{line}"
        self.continue_text(line or self.text)

    def continue_text(self, text: str) -> None:
        """Generate until the text ends by itself or by Ctrl-C. A text that is refused is not taken."""
        ids = encode_prompt(self.model, self.tokenizer, text, True, self.parse_special)
        self.text = text
        added = StreamDecoder(self.tokenizer, self.stop, self.allow_invalid_utf8, () if text else ids)
        seed = None if self.seed is None else self.seed + self.continuations
        options = {"seed": seed, **self.options.model_dump()}
        self.continuations += 1
        count, started = 0, time.perf_counter()
        try:
            for _ in continue_texts(self.model, [ids], [added], self.max_new_tokens, **options):
                count += 1
                self.echo(added.pop())
        finally:  # Ctrl-C too: what was shown is part of the text
            self.echo(added.flush())
            self.write("\n")
            if self.show_speed:
                seconds = time.perf_counter() - started
                self.write(f"[{count} tokens after {len(ids)}, {count / seconds:.1f} tokens/s]\n")

    def echo(self, piece: str) -> None:
        """Append a piece to the text and write it to the screen."""
        self.text += piece
        self.write(piece)

    def command(self, name: str = "", *args: str) -> None:
        """Run a slash command."""
        match name, args:
            case "help", ():
                self.write(f"{HELP}\n")
            case "clear", ():
                self.text = ""
            case "keep", ("on" | "off",):
                self.keep = args[0] == "on"
            case "speed", ("on" | "off",):
                self.show_speed = args[0] == "on"
            case "options", ():
                for key, value in self.options.model_dump().items():
                    self.write(f"{key} = {format_value(value)}\n")
            case "set", (key, value):
                changed = {**self.options.model_dump(), key.replace("-", "_"): parse_yaml(value)}
                self.options = validate(SamplingOptions, changed, "/set")
            case _:
                raise UserError(f"no such command: /{' '.join((name, *args))}; /help lists them")
