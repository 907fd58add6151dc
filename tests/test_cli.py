"""The front door: every command, exit codes, and mistakes that end in one line."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import gptmini
from gptmini.checkpoint.store import _seal
from gptmini.cli import GenerateOptions, main
from gptmini.config import Config, keys

ROOT = Path(__file__).parent.parent


@pytest.fixture
def config_file(tmp_path):
    """A run that takes a second."""
    (tmp_path / "text.txt").write_text("To be, or not to be, that is the question.\n" * 60)
    path = tmp_path / "tiny.yaml"
    path.write_text(
        f"""
        model: {{n_layer: 1, n_head: 2, n_embd: 16, context_length: 16}}
        data: {{corpus: {tmp_path / "text.txt"}}}
        tokenizer: {{kind: chars}}
        train: {{out_dir: {tmp_path / "run"}, max_steps: 4, batch_size: 4, eval_interval: 2}}
        runtime: {{device: cpu, threads: 1}}
        """
    )
    return path


@pytest.fixture
def run(config_file, tmp_path, capsys):
    """A trained run's folder."""
    assert main(["train", str(config_file)]) == 0
    capsys.readouterr()
    return tmp_path / "run"


def fails(capsys, *words, code=2):
    """The one line that a command ends with."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == code
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
    assert "bits per byte" in ours
    text = run.parent / "text.txt"
    assert main(["evaluate", str(run), "--corpus", str(text)]) == 0
    assert capsys.readouterr().out != ours


def test_a_prompt_can_come_from_a_file_or_from_standard_input(run, capsys, tmp_path, monkeypatch):
    options = ["--max-new-tokens", "5", "--temperature", "0"]
    main(["generate", str(run), "--prompt", "not", *options])
    expected = capsys.readouterr().out
    (tmp_path / "prompt.txt").write_text("not")
    main(["generate", str(run), "--prompt-file", str(tmp_path / "prompt.txt"), *options])
    assert capsys.readouterr().out == expected
    monkeypatch.setattr(sys, "stdin", io.StringIO("not"))
    main(["generate", str(run), "--prompt", "-", *options])
    assert capsys.readouterr().out == expected


def test_several_samples_are_told_apart(run, capsys):
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


def test_the_scripts_are_the_commands(config_file, tmp_path):
    def script(name, *words):
        command = [sys.executable, str(ROOT / "scripts" / name), *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)

    assert script("train.py", str(config_file)).returncode == 0
    result = script("generate.py", str(tmp_path / "run"), "--prompt", "To", "--max-new-tokens", "3")
    assert result.returncode == 0
    assert result.stdout.startswith("To")
    result = script("train.py", str(config_file), "--train.max-step", "3")
    assert result.returncode == 2
    assert result.stderr == ("gptmini: unknown option --train.max-step; did you mean --train.max-steps?\n")


def test_help_shows_every_key_with_the_default_of_the_file(config_file, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as end:
        main(["train", str(config_file), "--help"])
    assert end.value.code == 0
    output = capsys.readouterr().out
    for key in keys(Config):
        assert "--" + key.replace("_", "-") + " " in output
    assert "Optimizer steps. (default: 4)" in output
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    output = capsys.readouterr().out
    for key in keys(GenerateOptions):
        assert "--" + key.replace("_", "-") + " " in output


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["train", "--help"], ["train", "--train.seed", "x"]]
)
def test_help_and_config_errors_do_not_import_torch(words):
    code = (
        "import sys\nfrom gptmini.cli import main\n"
        f"try:\n    main({words})\nexcept SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


MISTAKES = {
    "trian": "unknown command trian; did you mean train?",
    "train --train.max_stpes 3": "unknown option --train.max_stpes; did you mean --train.max-steps?",
    "train --max-steps 3": "did you mean --train.max-steps?",
    "train --train.max 3": "unknown option --train.max",
    "train --train.max-steps": "--train.max-steps needs a value",
    "train --train.max-steps 0": "--train.max-steps = 0: needs a whole number of at least 1",
    "train --train.max-steps x": "--train.max-steps = 'x': needs a whole number",
    "train --train.max-steps 1.5": "--train.max-steps = 1.5: needs a whole number",
    "train --model.n-embd 10 --model.n-head 3": "n_embd = 10 must be a multiple of n_head = 3",
    "train --model.attention flash": "--model.attention = 'flash': needs masked or sdpa",
    "train --runtime.device gpu": "--runtime.device = 'gpu': needs auto, cpu, cuda",
    "train a.yaml b.yaml": "takes one CONFIG.yaml, not 2",
    "train missing.yaml": "missing.yaml: no such config file",
    "train --data.corpus nowhere.txt": "data.corpus = nowhere.txt: no such file or folder",
    "train --data.corpus python-doc": "did you mean python-docs?",
    "generate": "takes one CHECKPOINT",
    "generate nowhere": "nowhere: no such folder",
    "generate x --temperature -1": "--temperature = -1: needs a number of at least 0",
    "generate x --temperature nan": "--temperature",
    "generate x --top-p 0": "--top-p = 0: needs a number above 0",
    "generate x --top-k 0": "--top-k = 0: needs a whole number of at least 1",
    "generate x --max-new-tokens -1": "--max-new-tokens = -1: needs a whole number of at least 0",
    "generate x --prompt a --prompt-file b": "both given",
    "generate x --prompt-file nowhere.txt": "nowhere.txt: cannot be read",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_one_line_that_says_what_is_needed(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert MISTAKES[words] in fails(capsys, *words.split())
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


def test_bad_prompts_are_one_line(run, capsys):
    assert "17 tokens" in fails_after_prompt(capsys, "generate", run, "--prompt", "to be to be to be")
    assert "'ß' (U+00DF" in fails_after_prompt(capsys, "generate", run, "--prompt", "ß")


def fails_after_prompt(capsys, *words):
    """Like `fails`, where the prompt may have been shown already."""
    assert main([str(word) for word in words]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err


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
    manifest.write_bytes(_seal(body[: -len(_seal(b""))]))
    assert "format version 2 is not known" in fails(capsys, "generate", step)


def test_the_version_is_the_packages(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"gptmini {gptmini.__version__}\n"
