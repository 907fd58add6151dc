"""The front door: every command, exit codes, and mistakes that end in one line."""

import io
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import gptmini
from gptmini.checkpoint.manifest import append_checksum
from gptmini.cli.commands import COMMANDS
from gptmini.cli.main import main
from gptmini.cli.options import parse_options
from gptmini.config import Config, load_config
from gptmini.data.datasets import NAMED
from gptmini.errors import UserError
from gptmini.evaluation import summary
from gptmini.schema import accepts_text, flag_name, flatten_schema, format_value
from gptmini.yaml_io import parse_yaml

ROOT = Path(__file__).parent.parent


@pytest.fixture
def run(config_file, tmp_path, capsys):
    """A trained run's folder."""
    assert main(["train", str(config_file)]) == 0
    capsys.readouterr()
    return tmp_path / "run"


def fails(capsys, *args, code=2):
    """The one line that a command ends with."""
    capsys.readouterr()
    assert main([str(word) for word in args]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("gptmini: ")
    assert err.count("\n") == 1
    return err


def test_train_then_generate_then_evaluate(run, capsys):
    assert main(["generate", str(run), "--prompt", "To be", "--max-new-tokens", "20", "--seed", "1"]) == 0
    first = capsys.readouterr().out
    assert first.startswith("To be")
    assert len(first) > 10
    main(["generate", str(run), "--prompt", "To be", "--max-new-tokens", "20", "--seed", "1"])
    assert capsys.readouterr().out == first
    assert main(["evaluate", str(run)]) == 0
    ours = capsys.readouterr().out
    for line in ("bits per byte", "worst windows of 16 tokens", "best windows", "xz ", "5-gram "):
        assert line in ours
    text = run.parent / "text.txt"
    assert main(["evaluate", str(run), "--corpus", str(text)]) == 0
    assert capsys.readouterr().out != ours


@pytest.mark.parametrize("options", [["--quantize", "int8"], ["--precision", "bf16"]])
def test_evaluate_prints_what_rounded_weights_cost(config_file, tmp_path, capsys, options):
    # A rate so high that the weights are large, and rounding them costs far more than the printed digits.
    assert main(["train", str(config_file), "--optim.lr", "1", "--quiet"]) == 0
    run = tmp_path / "run"
    main(["evaluate", str(run)])
    exact = float(capsys.readouterr().out.split()[1])
    main(["evaluate", str(run), *options])
    out = capsys.readouterr().out
    rounded, cost = float(out.split()[1]), float(out.split("costs")[1].split()[0])
    assert f"fp32 has {exact:.4f}" in out
    assert abs(rounded - exact - cost) < 2e-4
    assert abs(cost) > 5e-4


def test_evaluate_prints_what_was_memorized(run, capsys, monkeypatch):
    monkeypatch.setattr(summary, "SAMPLE_TOKENS", 8)
    assert main(["evaluate", str(run), "--memorization"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"of samples +\d+ characters: '", out)
    assert "of 258 bytes of validation text: 100.00%" in out  # one sentence again and again


def test_evaluate_needs_no_training_text_for_another_one(run, capsys, tmp_path):
    text = tmp_path / "other.txt"
    text.write_text("To be, or not to be")
    (tmp_path / "text.txt").unlink()
    assert main(["evaluate", str(run), "--corpus", str(text)]) == 0
    assert "xz " not in capsys.readouterr().out
    assert "no such file" in fails(capsys, "evaluate", run)
    assert "no such file" in fails(capsys, "evaluate", run, "--corpus", text, "--memorization")
    text.write_text("T")
    assert "is less than two tokens long" in fails(capsys, "evaluate", run, "--corpus", text)
    assert "--corpus = nowhere: no such file" in fails(capsys, "evaluate", run, "--corpus", "nowhere")


def test_a_prompt_can_come_from_a_file_or_from_standard_input(run, capsys, tmp_path, monkeypatch):
    options = ["--max-new-tokens", "5", "--temperature", "0"]
    main(["generate", str(run), "--prompt", "not", *options])
    expected = capsys.readouterr().out
    (tmp_path / "prompt.txt").write_text("\ufeffnot", encoding="utf-8")
    main(["generate", str(run), "--prompt-file", str(tmp_path / "prompt.txt"), *options])
    assert capsys.readouterr().out == expected
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"not\n")))
    main(["generate", str(run), "--prompt", "-", *options])
    assert capsys.readouterr().out == expected


def test_a_tilde_is_the_home_folder_in_positional_arguments_too(run, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(run.parent))
    assert main(["evaluate", "~/run", "--corpus", "~/text.txt"]) == 0
    assert "bits per byte" in capsys.readouterr().out
    assert f"{run.parent}/none.pt: no such file" in fails(capsys, "import-nanogpt", "~/none.pt", "~/out")


def test_special_tokens_and_bytes_that_are_no_text_are_on_request(capsys, tmp_path):
    model, tokenizer = gptmini.GPT(gptmini.GPTConfig(vocab_size=257)), gptmini.Tokenizer.train("", "bytes")
    gptmini.save(tmp_path / "model", model, tokenizer)
    prompt = "<|endoftext|>To be"
    options = {"max_new_tokens": 30, "temperature": 50, "seed": 2}
    flags = ["--prompt", prompt, "--max-new-tokens", "30", "--temperature", "50", "--seed", "2"]
    texts = set()
    for keyword in ("parse_special", "allow_invalid_utf8"):
        (expected,) = gptmini.generate_text(model, tokenizer, prompt, **options, **{keyword: True})
        assert main(["generate", str(tmp_path / "model"), *flags, f"--{keyword.replace('_', '-')}"]) == 0
        assert capsys.readouterr().out == expected + "\n"
        texts.add(expected)
    assert len(texts) == 2


def test_several_samples_are_separated(run, capsys):
    main(["generate", str(run), "--prompt", "be", "--num-samples", "3", "--max-new-tokens", "5"])
    assert capsys.readouterr().out.count("-" * 80) == 3


def test_an_override_on_the_command_line_counts_and_is_saved(config_file, tmp_path):
    assert main(["train", str(config_file), "--train.max-steps", "2", "--optim.lr=3e-4", "--quiet"]) == 0
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["train"]["max_steps"] == 2
    assert saved["optim"]["lr"] == 3e-4


def test_prepare_prints_what_it_found(config_file, capsys):
    assert main(["prepare", str(config_file)]) == 0
    meta = yaml.safe_load(capsys.readouterr().out)
    assert meta["train_tokens"] + meta["val_tokens"] == 60 * 43


def test_prepare_lists_the_named_corpora(capsys):
    assert main(["prepare", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(NAMED)


def test_prepare_describes_the_text(config_file, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    assert main(["prepare", str(config_file), "--stats"]) == 0
    stats = yaml.safe_load(capsys.readouterr().out)["stats"]
    assert stats == {
        "documents": 1,
        "text_bytes": 60 * 43,
        "longest_document_bytes": 60 * 43,
        "repeated_share": 0.0,
        "tokens": 60 * 43,
        "bytes_per_token": 1.0,
        "gpt2_bytes_per_token": None,
    }


def test_the_scripts_are_the_commands(config_file, tmp_path, monkeypatch, capsys):
    def script(name, *args):
        monkeypatch.setattr(sys, "argv", [name, *map(str, args)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__")
        return end.value.code

    monkeypatch.setattr(sys, "path", [*sys.path])  # the scripts add to it
    assert script("train.py", config_file) == 0
    capsys.readouterr()
    assert script("generate.py", tmp_path / "run", "--prompt", "To", "--max-new-tokens", "3") == 0
    assert capsys.readouterr().out.startswith("To")
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), "--train.max-step", "3"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 2
    assert result.stderr == ("gptmini: unknown option --train.max-step; did you mean --train.max-steps?\n")


def test_help_shows_every_key_with_the_default_of_the_file(config_file, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["train", str(config_file), "--help"]) == 0
    output = re.sub(r"[│\s]+", " ", capsys.readouterr().out)  # what the lines and boxes hold
    config = load_config(config_file).model_dump(mode="json")
    for key, node in flatten_schema(Config).items():
        section, name = key.split(".")
        value = config[section][name]
        default = (" ".join(map(str, value)) or "[]") if isinstance(value, list) else format_value(value)
        default = default.strip("'")
        described = output.partition(f" {flag_name(key)} ")[2].partition(" --")[0]
        if len(default) < 40:  # a longer one is broken over lines
            assert f"{node['description']} (default: {default})" in described
        assert node["description"] in described


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_a_terminal_of_80_columns(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*command.split(), "--help"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


@pytest.mark.parametrize(
    "command", ["generate", "prepare", "plan", "evaluate", "export", "import-nanogpt", "report"]
)
def test_help_of_a_command_shows_its_options(command, capsys):
    assert main([command, "--help"]) == 0
    output = capsys.readouterr().out
    assert output.startswith(f"usage: gptmini {command} ")
    assert [key for key in COMMANDS[command].options if f" {flag_name(key)} " not in output] == []
    assert "None" not in output  # it is null, as in the file


def test_a_word_on_the_command_line_means_what_it_means_in_the_file(tmp_path):
    def outcome(path, overrides):
        try:
            return load_config(path, overrides)
        except UserError as error:
            return str(error).partition(" = ")[2]

    args = ["3", "-1", "0.5", "3e-4", "1:30", "true", "yes", "null", "[0.9,0.95]", "{a:1}", "x", "bpe"]
    path = tmp_path / "c.yaml"
    compared = 0
    for key, node in flatten_schema(Config).items():
        for word in args:
            stays_text = accepts_text(node) and not isinstance(parse_yaml(word), str)
            becomes_a_list = node.get("type") == "array" and not isinstance(parse_yaml(word), list)
            if not stays_text and not becomes_a_list:
                section, name = key.split(".")
                path.write_text(f"{section}:\n  {name}: {word}\n")
                _, overrides = parse_options([flag_name(key), word], flatten_schema(Config))
                assert outcome(None, overrides) == outcome(path, {}), (key, word)
                compared += 1
    assert compared > len(flatten_schema(Config)) * len(args) * 3 / 4


def test_options_are_read_in_every_way_they_may_be_written():
    def read(*args):
        return parse_options(args, COMMANDS["train"].options)

    assert read("--train.max_steps=3", "a.yaml") == (["a.yaml"], {"train.max_steps": 3})
    assert read("--train.max-steps", "3", "a.yaml") == (["a.yaml"], {"train.max_steps": 3})
    assert read("a.yaml", "--data.corpus", "1", "b") == (["a.yaml"], {"data.corpus": ["1", "b"]})
    assert read("--data.corpus", "null", "--resume") == ([], {"data.corpus": "null", "resume": True})
    assert read("--resume", "a.yaml") == (["a.yaml"], {"resume": True})
    assert read("--data.corpus", "a", "b", "c.yaml") == (["c.yaml"], {"data.corpus": ["a", "b"]})
    assert read("c.yml", "--data.corpus", "a", "b.yml") == (["c.yml"], {"data.corpus": ["a", "b.yml"]})
    assert read("--train.trackers", "wandb", "c.yaml", "--quiet")[0] == ["c.yaml"]
    assert read("--optim.betas", "0.9", "0.99", "c.yaml") == (["c.yaml"], {"optim.betas": [0.9, 0.99]})
    with pytest.raises(UserError, match=r"--data\.corpus: is b\.yaml one of its values\? Put the CONFIG"):
        read("--data.corpus", "a.yaml", "b.yaml")
    assert read("--quiet", "false", "--train.init-from", "null")[1] == {
        "quiet": False,
        "train.init_from": None,
    }
    assert read("--optim.betas", "0.9", "0.99")[1] == {"optim.betas": [0.9, 0.99]}
    assert read("--optim.betas=[0.9, 0.99]")[1] == {"optim.betas": [0.9, 0.99]}
    assert read("--optim.lr", "-1", "--model.bias", "false")[1] == {"optim.lr": -1, "model.bias": False}
    assert read("--train.out-dir=--odd=")[1] == {"train.out_dir": "--odd="}
    assert read("--data.text-field=--")[1] == {"data.text_field": "--"}
    assert read("--train.out-dir", "-odd", "-a")[0] == ["-a"]  # only -- begins an option


_OPTIONS = st.sampled_from([*map(flag_name, flatten_schema(Config))])
_PIECES = st.sampled_from(["--", "=", "-", "[", "{", "'", "!!int ", "&a ", "*a", "\n", "9" * 99, "null", "3"])
_WORDS = st.lists(_OPTIONS | _PIECES | st.text(max_size=4), max_size=3).map("".join)


def test_any_words_are_read_or_refused(long):
    refused = []

    def check(args):
        try:
            load_config(None, parse_options(args, flatten_schema(Config))[1])
        except UserError as error:
            refused.append(str(error))

    examples = 20_000 if long else 200
    settings(max_examples=examples, deadline=None, database=None)(given(st.lists(_OPTIONS | _WORDS))(check))()
    assert max(map(len, refused)) < 3000
    assert len(refused) < examples


def test_completion_knows_commands_options_choices_and_paths(capsys, tmp_path):
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "completion.sh"
    script.write_text(capsys.readouterr().out, encoding="utf-8")
    (tmp_path / "mine.yaml").touch()

    def complete(*args):
        ask = (
            f"source {script}; COMP_WORDS=(gptmini {' '.join(args)}); COMP_CWORD={len(args)}; "
            "_shtab_gptmini '' ${COMP_WORDS[COMP_CWORD]}; "
            'echo ${COMPREPLY[@]}; test ${#COMPREPLY[@]} != 1 -o "$COMPREPLY"'  # not one empty word
        )
        done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True, cwd=tmp_path)
        return done.stdout.split()

    assert complete("''") == list(COMMANDS)
    assert "--train.max-steps" in complete("train", "--")
    assert complete("train", "--model.attention", "''") == ["eager", "additive", "sdpa"]
    assert complete("train", "--model.bias", "''") == ["true", "false"]
    assert complete("train", "mi") == complete("train", "--data.corpus", "mi") == ["mine.yaml"]
    assert complete("completion", "''") == ["bash", "zsh", "fish"]
    (tmp_path / "runs" / "real").mkdir(parents=True)
    assert complete("generate", "runs/re") == complete("report", "x", "runs/re") == ["runs/real"]
    assert complete("generate", "runs/nothing") == []


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_of_other_shells_is_a_script_that_they_read(shell, capsys, tmp_path):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in ("import-nanogpt", "train.max-steps", "Optimizer steps."))
    if shutil.which(shell) is None:
        return
    (tmp_path / "script").write_text(script, encoding="utf-8")
    subprocess.run([shell, "-n", str(tmp_path / "script")], check=True)
    if shell == "fish":
        ask = 'source script; complete -C "gptmini train --model.bias "'
        done = subprocess.run(
            ["fish", "-N", "-c", ask], capture_output=True, text=True, cwd=tmp_path, check=True
        )
        assert [line.split()[0] for line in done.stdout.splitlines()] == ["true", "false"]


def test_python_finds_the_command_line_too():
    command = [sys.executable, "-m", "gptmini", "trian"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == "gptmini: unknown command trian; did you mean train?; see gptmini --help\n"


def test_a_closed_pipe_ends_quietly():
    code = "import sys; from gptmini.cli.main import main; sys.exit(main(['train', '--help']))"
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} | true; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (141, "")


def test_ctrl_c_outside_training_ends_quietly_with_130(monkeypatch, capsys):
    class Interrupted(io.BytesIO):
        def read(self, size=-1):
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Interrupted()))
    assert main(["generate", "x", "--prompt", "-"]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("no_color", ["", "1"])
def test_help_in_a_terminal_heeds_no_color(no_color, monkeypatch, in_terminal):
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", "xterm")
    shown = in_terminal(lambda: main(["generate", "--help"]))
    assert "--max-new-tokens" in shown
    coloured = sys.version_info >= (3, 14) and not no_color  # since then argparse colours
    assert ("\x1b[" in shown) == coloured


def test_help_and_config_errors_do_not_import_torch():
    code = """import sys
from gptmini.cli.main import main
for command in (
    "--help",
    "--version",
    "train --help",
    "generate --help",
    "completion bash",
    "train --train.seed x",
    "generate x --top-p 2",
):
    main(command.split())
    assert "torch" not in sys.modules, command
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_a_run_imports_neither_sympy_nor_masked_arrays(config_file):
    code = """import sys
from gptmini.cli.main import main
assert main(sys.argv[1:]) == 0
assert not {"sympy", "numpy.ma"} & sys.modules.keys()
"""
    command = [sys.executable, "-c", code, "train", str(config_file), "--train.max-steps", "1"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


MISTAKES = {
    "--train.seed 3": "unknown command --train.seed",
    "completion tcsh": "takes one of bash, zsh or fish",
    "train --": "unknown option --",
    "train --train.seed 1 --train.seed=2": "--train.seed is given twice",
    "train --train.max-st 3": "unknown option --train.max-st; did you mean --train.max-steps?",
    "train --resum": "unknown option --resum; did you mean --resume?",
    "train --resume=maybe": "--resume = 'maybe': needs true or false",
    "train --model.bias yes": "--model.bias = 'yes': needs true or false",
    "train --model.bias": "--model.bias needs a value: true or false",
    "train --optim.betas=--": "--optim.betas[0] = '--': needs a number",
    "train --optim.betas 0.9": "--optim.betas = [0.9]: needs a list of 2 numbers",
    "train --optim.lr nan": "--optim.lr = 'nan': needs a number above 0",
    "train --train.max-steps 1 --train.max_step 2": "did you mean --train.max-steps?",
    "train --model.n-layer null": "--model.n-layer = null: needs a whole number",
    "generate x --truncate-prompt right": "--truncate-prompt = 'right': needs left or null",
    "trian": "unknown command trian; did you mean train?",
    "train --train.max_stpes 3": "unknown option --train.max_stpes; did you mean --train.max-steps?",
    "train --max-steps 3": "did you mean --train.max-steps?",
    "train --train.max 3": "unknown option --train.max",
    "train --train.max-steps": "--train.max-steps needs a value",
    "train --train.max-steps 0": "--train.max-steps = 0: needs a whole number of at least 1",
    "train --train.max-steps x": "--train.max-steps = 'x': needs a whole number",
    "train --train.max-steps 1.5": "--train.max-steps = 1.5: needs a whole number",
    "train --model.n-embd 10 --model.n-head 3": "n_embd = 10 must be a multiple of n_head = 3",
    "train --model.attention flash": "--model.attention = 'flash': needs eager, additive or sdpa",
    "train --runtime.device gpu": "--runtime.device = 'gpu': needs auto, cpu, cuda",
    "train a.yaml b.yaml": "takes [CONFIG.yaml]; given: a.yaml b.yaml",
    "train missing.yaml": "missing.yaml: no such config file",
    f"generate {'x' * 300}": "(300 characters): is too long for a path",
    f"train --train.out-dir {'x/' * 2500}": "(5000 characters): is too long for a path",
    "report a\0b": "'a\\x00b': is no path",
    "train a\0b": "'a\\x00b': is no path",
    "train --data.corpus nowhere.txt": "data.corpus = nowhere.txt: no such file or folder",
    "train --data.corpus python-doc": "did you mean python-docs?",
    "generate": "takes CHECKPOINT; given: nothing",
    "generate nowhere": "nowhere: no such folder",
    "generate x --temperature -1": "--temperature = -1: needs a number of at least 0",
    "generate x --temperature nan": "--temperature",
    "generate x --top-p 0": "--top-p = 0: needs a number above 0",
    "generate x --top-k -1": "--top-k = -1: needs a whole number of at least 0",
    "generate x --max-new-tokens -1": "--max-new-tokens = -1: needs a whole number of at least 0",
    "export": "takes CHECKPOINT; given: nothing",
    "export x --dtype int4": "--dtype = 'int4': needs float32, float16, q8_0 or int8",
    "export x --numbers int4": "--dtype = 'int4': needs",  # its former name
    "export x --format onnx": "--format = 'onnx': needs gguf",
    "import-nanogpt ckpt.pt": "takes CKPT.pt OUT; given: ckpt.pt",
    "import-nanogpt ckpt.pt out --force": "unknown option --force",
    "train --minutes 2 --train.init-from x": "--minutes is for runs without a size: with train.init_from",
    "configs python_doc": "no config is called python_doc; did you mean python_docs?",
    "configs a b": "takes [NAME]; given: a b",
    "report": "takes RUN [RUN ...]; given: nothing",
    "report nowhere": "nowhere: not a run folder",
    "import-nanogpt nowhere.pt out": "nowhere.pt: no such file",
    "generate x --prompt a --prompt-file b": "both given",
    "generate x --prompt - --interactive": "--prompt - and --interactive both read standard input",
    "train --data.corpus - --data.val-corpus -": "standard input can be read once only",
    "prepare --data.corpus - --data.val-corpus a.txt -": "standard input can be read once only",
    "generate x --quantize int8 --precision bf16": "give one of them",
    "generate x --prompt-file nowhere.txt": "nowhere.txt: cannot be read",
}


@pytest.mark.parametrize("args", MISTAKES)
def test_a_mistake_is_one_line_that_says_what_is_needed(args, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert MISTAKES[args] in fails(capsys, *args.split())
    assert [p for p in tmp_path.iterdir() if p.name != "cache"] == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"[1, 2]", "holds a list"),
        (b"train: {max_steps: 1, max_steps: 2}", "key 'max_steps' is given twice"),
        (b"train: [", "line 1"),
        (b"train: {max_steps: 'x'}", "train.max_steps = 'x': needs a whole number"),
        (b"\xff\xfe\x00", "not UTF-8"),
        ("train: {}".encode("utf-16-le"), "it holds a zero byte, as UTF-16 and UTF-32 do; save it as UTF-8"),
        (b"train: {}\n#" + b" " * (1 << 20), "larger than 1 MiB, so it is no config"),
        (b"train: !!python/object:os.system {}", "tags such as tag:yaml.org,2002:python/object:os.system"),
        (b"train: {<<: {seed: 1}}", "unknown key 'train.<<'"),
        (b"train: &a [*a]", "train = [[[...]]]: needs keys of its own"),
        (b"train:\n\tseed: 1", "line 2, column 1"),
        (b"train: 3", "train = 3"),
        (b"trian: {}", "unknown key trian"),
    ],
)
def test_a_bad_config_file_is_one_line_that_names_it(content, message, capsys, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    line = fails(capsys, "train", path)
    assert "bad.yaml" in line
    assert message in line


@pytest.mark.skipif(sys.platform == "win32", reason="needs named pipes")
def test_a_config_may_come_through_a_pipe_but_is_not_waited_for(config_file, capsys, tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    assert "pipe.yaml: is empty" in fails(capsys, "train", tmp_path / "pipe.yaml")
    reader, writer = os.pipe()  # as `<(command)` has it
    os.write(writer, b"train: {max_steps: 7}")
    os.close(writer)
    assert main(["plan", f"/dev/fd/{reader}", "--data.corpus", str(tmp_path / "text.txt")]) == 0
    os.close(reader)
    assert "in 7 steps" in capsys.readouterr().out


def test_what_is_no_file_is_not_replaced(run, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("vl_convert.javascript_bundle", lambda script: "")  # which takes seconds
    os.mkfifo(tmp_path / "pipe.html")
    line = fails(capsys, "report", run, "--output", tmp_path / "pipe.html", code=1)
    assert "pipe.html: is no file that could be replaced" in line


def test_bad_input_to_training_leaves_nothing_behind(config_file, capsys, tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"abc \xff def " * 100)
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "short.txt").write_bytes(b"short")
    (tmp_path / "secret.txt").mkdir()
    for name, message in {
        "bad.txt": "not UTF-8 text at byte 4 (0xff)",
        "empty.txt": "holds no text",
        "short.txt": "the training split has",
        "secret.txt": "holds no text file",
    }.items():
        assert message in fails(capsys, "train", config_file, "--data.corpus", tmp_path / name)
        assert not (tmp_path / "run").exists()


def test_a_folder_with_a_run_is_refused(run, config_file, capsys):
    assert "holds a run already" in fails(capsys, "train", config_file)


def test_bad_prompts_are_one_line(run, capsys, tmp_path):
    assert "17 tokens" in fails(capsys, "generate", run, "--prompt", "to be to be to be")
    assert "'ß' (U+00DF" in fails(capsys, "generate", run, "--prompt", "ß")
    (tmp_path / "prompt.txt").write_bytes(b"to \xff")
    line = fails(capsys, "generate", run, "--prompt-file", tmp_path / "prompt.txt")
    assert "prompt.txt: not UTF-8 text (byte 3)" in line
    for encoding, name in (("utf-16", "UTF-16"), ("utf-16-le", "UTF-16"), ("utf-32-be", "UTF-32")):
        (tmp_path / "prompt.txt").write_bytes("to be".encode(encoding))
        line = fails(capsys, "generate", run, "--prompt-file", tmp_path / "prompt.txt")
        assert f"prompt.txt: seems to be {name} text: save it as UTF-8" in line
    assert "the character '\\udc80'" in fails(capsys, "generate", run, "--prompt", "a\udc80")


def test_the_end_of_a_long_prompt_is_read_where_asked(run, capsys):
    end, options = "to be, or not to", ["--max-new-tokens", "8", "--temperature", "0"]
    main(["generate", str(run), "--prompt", end, *options])
    expected = "be, " + capsys.readouterr().out
    main(["generate", str(run), "--prompt", "be, " + end, "--truncate-prompt", "left", *options])
    assert capsys.readouterr().out == expected


def test_a_damaged_checkpoint_exits_4_and_names_the_file(run, capsys):
    (step,) = sorted((run / "checkpoints").iterdir())[-1:]
    weights = step / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert "model.safetensors: damaged" in fails(capsys, "generate", step, code=4)


def test_a_checkpoint_of_a_later_version_exits_2(run, capsys):
    (step,) = sorted((run / "checkpoints").iterdir())[-1:]
    manifest = step / "manifest.json"
    body = manifest.read_bytes().replace(b'"format_version": 1', b'"format_version": 2')
    manifest.write_bytes(append_checksum(body[: -len(append_checksum(b""))]))
    assert "format version 2 is not known" in fails(capsys, "generate", step)


def test_the_configs_are_listed_and_printed(capsys):
    names = [path.stem for path in sorted((ROOT / "configs").glob("*.yaml"))]
    assert main(["configs"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == names
    assert main(["configs", "my_text"]) == 0
    assert capsys.readouterr().out == (ROOT / "configs" / "my_text.yaml").read_text(encoding="utf-8")


def test_the_version_is_the_packages(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"gptmini {gptmini.__version__}\n"
