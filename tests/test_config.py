"""The config: how YAML is read, what the schema refuses, and that every refusal is one line."""

import errno
import math
import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field

from gptmini.cli.main import main
from gptmini.config import (
    Config,
    DataConfig,
    GPTConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    dump_config,
    load_config,
)
from gptmini.errors import UserError
from gptmini.schema import Section, describe_type, flatten_schema, validate
from gptmini.yaml_io import parse_yaml


@pytest.fixture
def refusal(tmp_path):
    """The message that a config file with this text is refused with."""

    def message(text, overrides=None):
        path = tmp_path / "c.yaml"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UserError) as error:
            load_config(path, overrides)
        return str(error.value).removeprefix(f"{path}: ")

    return message


def test_a_file_and_its_overrides_become_one_config(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("train: {max_steps: 5, seed: 1}\noptim: {lr: 3e-4, betas: [0.9, 1e-1]}\n")
    config = load_config(path, {"train.seed": 2, "model.n_layer": 3})
    assert (config.train.max_steps, config.train.seed, config.model.n_layer) == (5, 2, 3)
    assert (config.optim.lr, config.optim.betas) == (3e-4, (0.9, 0.1))
    assert config.data == Config().data


def test_the_former_name_of_eager_attention_is_read(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("model: {attention: masked}")
    assert load_config(path) == load_config(None, {"model.attention": "masked"}) == Config()
    assert ModelConfig(attention="masked").attention == "eager"


def test_numbers_and_words_are_read_as_people_expect():
    text = "[3e-4, 1E3, .5, -7, no, on, 1:30, 0x10, 1_000, true, null, ~, .inf, '3', 2026-01-01]"
    expected = [3e-4, 1e3, 0.5, -7, "no", "on", "1:30", "0x10", "1_000", True, None, None, math.inf, "3"]
    assert parse_yaml(text) == [*expected, "2026-01-01"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty, but a config is a mapping of sections such as `model:`"),
        ("# only a comment\n", "is empty"),
        ("[1, 2]", "holds a list"),
        ("just words", "holds a str"),
        ("train:\n  seed: 1\n  seed: 2\n", "line 3, column 3: key 'seed' is given twice"),
        ("train: [1", "line 1, column 10: while parsing a flow sequence: expected ',' or ']'"),
        ("train:\n\tseed: 1\n", "line 2, column 1: "),
        ("{}\n---\n{}\n", "line 2, column 1: expected a single document in the stream"),
        ("train: !!int 3", "line 1, column 8: tags such as tag:yaml.org,2002:int are not used in a config"),
        ("train: *nowhere", "line 1, column 8: found undefined alias 'nowhere'"),
        ("? [a]\n: 1\n", "line 1, column 3: a key must be a word"),
        ('train: "\\UFFFFFFFF"', "not YAML: holds an escape that is no character"),
        ("train: " + "[" * 1500, "not YAML: nested too deeply"),
        ("train: {seed: 123456789012345678901234567890}", "line 1, column 15: number is too long"),
        ("a: \x07", "not YAML: unacceptable character #x0007"),
    ],
)
def test_what_is_not_a_yaml_mapping_is_refused_with_its_place(text, message, refusal):
    assert refusal(text).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {max_step: 5}", "unknown key train.max_step; did you mean train.max_steps?"),
        ("train: {lr: 5}", "unknown key train.lr; did you mean optim.lr?"),
        ("max_steps: 5", "unknown key max_steps; did you mean train.max_steps?"),
        ("trian: {}", "unknown key trian; did you mean train?"),
        ("train.max_steps: 5", "unknown key train.max_steps; write `train: {max_steps: ...}`"),
        ('"a\\nb\\e": 5', r"unknown key 'a\nb\x1b'"),
        ("model:", "model = null: needs keys of its own"),
        ("train: {max_steps: 0}", "train.max_steps = 0: needs a whole number of at least 1"),
        ("train: {max_steps: 2.0}", "train.max_steps = 2.0: needs a whole number of at least 1"),
        ("train: {max_steps: true}", "train.max_steps = true: needs a whole number of at least 1"),
        ("train: {max_steps: }", "train.max_steps = null: needs a whole number of at least 1"),
        ("train: {max_steps: '5'}", "train.max_steps = '5': needs a whole number of at least 1"),
        (
            "train: {eval_tokens: x}",
            "train.eval_tokens = 'x': needs a whole number of at least 1 and of at most",
        ),
        ("train: {out_dir: ''}", "train.out_dir = '': needs a path"),
        ('train: {out_dir: "a\\0b"}', r"train.out_dir = 'a\x00b': needs a path"),
        ("train: {out_dir: 5}", "train.out_dir = 5: needs a path (quote it to make it a text)"),
        ("model: {bias: yes}", "model.bias = 'yes': needs true or false"),
        ("model: {dropout: 1}", "model.dropout = 1: needs a number of at least 0.0 and below 1.0"),
        ("optim: {lr: .nan}", "optim.lr = nan: needs a number above 0.0"),
        ("optim: {lr: .inf}", "optim.lr = inf: needs a number above 0.0"),
        ("model: {attention: flash}", "model.attention = 'flash': needs eager, additive or sdpa"),
        ("runtime: {threads: many}", "runtime.threads = 'many': needs auto or a whole number of at least 1"),
        ("runtime: {device: gpu}", "runtime.device = 'gpu': needs auto, cpu, cuda, mps or a text such as"),
        ("data: {corpus: []}", "data.corpus = []: needs a path or a list of paths"),
        ("data: {corpus: [a, 5]}", "data.corpus = ['a', 5]: needs a path or a list of paths"),
        ("optim: {betas: 0.9}", "optim.betas = 0.9: needs a list of 2 numbers of at least 0.0 and below 1.0"),
        ("optim: {betas: [0.9]}", "optim.betas = [0.9]: needs a list of 2 numbers"),
        ("optim: {betas: [0.9, 0.9, 0.9]}", "optim.betas = [0.9, 0.9, 0.9]: needs a list of 2 numbers"),
        ("optim: {betas: [0.9, 2]}", "optim.betas[1] = 2: needs a number of at least 0.0 and below 1.0"),
        ("model: {n_embd: 10, n_head: 3}", "model: n_embd = 10 must be a multiple of n_head = 3, because"),
        ("tokenizer: {kind: gpt2, vocab_size: 999}", "tokenizer: vocab_size = 999 is for kind bpe only"),
        (
            "tokenizer: {folder: x, vocab_size: 999}",
            "tokenizer: vocab_size = 999 is for kind bpe only",
        ),
        ("tokenizer: {kind: chars, folder: x}", "tokenizer: folder = 'x' is for the kinds bpe and gpt2"),
        ("tokenizer: {byte_fallback: true}", "tokenizer: byte_fallback = true is for kind chars only"),
        (
            'tokenizer: {kind: bytes, folder: "\\x1f"}',
            r"tokenizer: folder = '\x1f' is for the kinds bpe and gpt2",
        ),
        ("train: {batch_size: 6, micro_batch_size: 4}", "train: batch_size = 6 must be a multiple of"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_what_is_needed(text, message, refusal):
    line = refusal(text)
    assert line.startswith(message)
    assert " more)" not in line


def test_other_wrong_keys_are_counted_once_each(refusal):
    line = refusal("train: {max_steps: 0}\nruntime: {threads: x}\ndata: {corpus: [1, 2]}\n")
    assert line == "data.corpus = [1, 2]: needs a path or a list of paths (and 2 more)"


def test_a_wrong_override_is_named_as_an_option(refusal):
    assert refusal("train: {seed: 1}", {"train.max_steps": 0}).endswith(
        "--train.max-steps = 0: needs a whole number of at least 1 and of at most 1,000,000,000"
    )


def test_an_override_in_a_section_that_is_none_does_not_hide_the_mistake(refusal):
    assert refusal("train: 5", {"train.max_steps": 3}) == "train = 5: needs keys of its own"


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    for path, reason in [(tmp_path, "cannot be read: Is a directory"), (tmp_path / "x", "no such config")]:
        with pytest.raises(UserError, match=f"^{path}: {reason}"):
            load_config(path)


def test_huge_values_are_shortened(refusal):
    assert len(refusal(f"train: {{max_steps: {'x' * 10_000}}}")) < 200
    assert len(refusal(f"{'x' * 10_000}: 1")) < 200
    assert len(refusal(f"*{'x' * 10_000}")) < 400
    layers = "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]\n" for i in range(1, 20))
    assert len(refusal(f"l0: &l0 [x]\n{layers}")) < 1000  # 9^19 values, were they all shown
    assert len(refusal(f"train: {{max_steps: [{'[' * 50}{']' * 50}]}}")) < 200


class _Inner(Section):
    size: int


class _Outer(Section):
    files: dict[str, _Inner]
    anything: dict[str, object] = Field(default_factory=dict)
    exact: str = Field("ab", pattern="^[ab]+$")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "here: files is missing"),
        ({"files": {"x": {}}}, "here: files.x.size is missing"),
        ({"files": {"x": {"size": "1"}}}, "here: files.x.size = '1': needs a whole number"),
        ({"files": {}, "anything": {1: 2}}, "here: anything.1 = 1: needs another value"),
        ({"files": {}, "exact": "c"}, "here: exact = 'c': needs a text matching ^[ab]+$"),
    ],
)
def test_any_schema_is_explained_to_the_key(values, message):
    with pytest.raises(UserError) as error:
        validate(_Outer, values, "here")
    assert str(error.value).startswith(message)


def test_every_key_says_what_it_needs_and_has_a_sentence():
    for key, node in flatten_schema(Config).items():
        assert describe_type(node), key
        assert node["description"].endswith("."), key


# A value for one key: mostly of the right kind, sometimes anything at all.
_TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | _TEXTS | st.sampled_from(["auto", "bpe"])
_ANYTHING = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3)
)


def _plausible(node):
    """Values that the JSON schema of a key allows."""
    if "anyOf" in node:
        return st.one_of(*map(_plausible, node["anyOf"]))
    if "enum" in node or "const" in node:
        return st.sampled_from(node.get("enum") or [node["const"]])
    match node["type"]:
        case "integer":
            return st.integers(node.get("minimum", 1), node.get("maximum", 2**40))
        case "number":
            return st.floats(0.001, 0.999)
        case "string":
            return st.just("cuda:1") if "examples" in node else _TEXTS.filter(lambda t: t and "\0" not in t)
        case "array":
            items = node.get("prefixItems") or [node["items"]] * 2
            return st.tuples(*map(_plausible, items)).map(list)
    return {"boolean": st.booleans(), "null": st.none()}[node["type"]]


@st.composite
def _values(sample, wild):
    """Sections with some of their keys; a few keys and values are anything where it is `wild`."""
    values, nodes = {}, flatten_schema(Config)
    for key in sample(st.lists(st.sampled_from([*nodes]), unique=True, min_size=2, max_size=20)):
        section, name = key.split(".")
        strange = wild and sample(st.integers(0, 9)) == 0
        values.setdefault(section, {})[name] = sample(_ANYTHING if strange else _plausible(nodes[key]))
    if wild and sample(st.integers(0, 4)) == 0:
        target = values.setdefault(sample(st.sampled_from(["model", "train"])), {})
        sample(st.sampled_from([values, target]))[sample(_TEXTS)] = sample(_ANYTHING)
    return values


def _accepts_or_explains(path, content):
    """Load a config file of any content; whether it was accepted. Anything but one clean line fails."""
    path.write_bytes(content)
    try:
        config, message = load_config(path), ""
    except UserError as error:
        config, message = None, str(error)
    if config is None:
        assert message.isprintable()
        assert len(message) < 3000
        return False
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config
    return True


def _fuzz(strategy, check, examples):
    settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))(
        given(strategy)(check)
    )()


def test_any_config_is_accepted_or_refused_in_one_line(tmp_path, long):
    counts = {True: 0, False: 0}

    def check(values):
        text = yaml.safe_dump(values, allow_unicode=True)
        counts[_accepts_or_explains(tmp_path / "c.yaml", text.encode())] += 1

    _fuzz(_values(wild=True), check, 60_000 if long else 1000)  # about a third is accepted
    print(f"{counts[True]} configs accepted, {counts[False]} refused")
    assert min(counts.values()) > 20


_WORDS = "train model seed max_steps lr corpus betas threads 3 -1 3e-4 .inf x null ~ = @ ` # << --- ... {} []"
_MARKS = (
    ": |:|, |{|}|[|]|- |? |&a |*a|!!int |!x |!!set |'|\"|>-|\\U|\\x|FFFFFFFF|%YAML 1.1|\x1b[31m|\U0001f600"
)
_SPACES = ["\n", "\n  ", "\t", "\0", "\ufeff", "\x85", "\u2028", "|\n", "\n---\n", "9" * 5000]
_YAML_PIECES = st.sampled_from([*flatten_schema(Config), *_WORDS.split(), *_MARKS.split("|"), *_SPACES])


def test_any_text_is_accepted_or_refused_in_one_line(tmp_path, long):
    refused = []

    def check(pieces):
        content = "".join(pieces).encode() if isinstance(pieces, list) else pieces
        refused.append(not _accepts_or_explains(tmp_path / "c.yaml", content))

    _fuzz(st.lists(_YAML_PIECES, max_size=25) | st.binary(max_size=60), check, 40_000 if long else 200)
    assert any(refused)


def test_a_dumped_config_reads_back_equal(tmp_path, long):
    def check(values):
        try:
            config = Config.model_validate(values)
        except UserError:  # a rule between keys
            return
        path = tmp_path / "c.yaml"
        path.write_text(dump_config(config), encoding="utf-8")
        assert load_config(path) == config

    _fuzz(_values(wild=False), check, 5_000 if long else 100)


@pytest.mark.parametrize(
    "word",
    ["3e-4", "1.e5", "12", "-.5", "no", "1:30", "null", "~", " x ", "- x", "a: b", "#", "\x85", "a\u2028b\n"],
)
def test_a_text_that_looks_like_something_else_is_dumped_as_text(word, tmp_path):
    config = validate(Config, {"data": {"corpus": [word, "\U0001f600"]}, "train": {"out_dir": word}}, "here")
    (tmp_path / "c.yaml").write_text(dump_config(config), encoding="utf-8")
    assert load_config(tmp_path / "c.yaml") == config


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GPTConfig(n_layers=3), "GPTConfig: unknown key n_layers; did you mean n_layer?"),
        (lambda: Config(trian={}), "Config: unknown key trian; did you mean train?"),
        (
            lambda: Config(train={"max_stesp": 1}),
            "Config: unknown key train.max_stesp; did you mean train.max_",
        ),
        (lambda: ModelConfig(n_embd=7, n_head=2), "ModelConfig: n_embd = 7 must be a multiple of n_head = 2"),
        (lambda: TrainConfig(max_steps=0), "TrainConfig: max_steps = 0: needs a whole number of at least 1"),
        (lambda: Config(train={"seed": "x"}), "Config: train.seed = 'x': needs a whole number of at least 0"),
        (lambda: _Outer(), "_Outer: files is missing"),
        (
            lambda: GPTConfig.model_validate({"n_layers": 3}),
            "GPTConfig: unknown key n_layers; did you mean n_la",
        ),
        (
            lambda: Config.model_validate_json('{"trian": {}}'),
            "Config: unknown key trian; did you mean train?",
        ),
        (
            lambda: GPTConfig(max_seq_len=4),
            "GPTConfig: unknown key max_seq_len; did you mean context_length?",
        ),
        (
            lambda: GPTConfig(65),
            "GPTConfig takes keys by name, GPTConfig(n_layer=...), or a dict of them as GPT",
        ),
        (
            lambda: Config({"train": {}}),
            "Config takes keys by name, Config(model=...), or a dict of them as Con",
        ),
    ],
)
def test_a_section_built_in_python_fails_in_one_line_like_a_file(build, message):
    with pytest.raises(UserError) as error:
        build()
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_numbers_of_numpy_and_paths_are_taken(tmp_path):
    config = Config(
        model={"n_layer": np.int64(3), "dropout": np.float32(0.5)},
        optim=OptimConfig(betas=(np.float64(0.5), np.float16(0.25))),
        data=DataConfig(corpus=[tmp_path, "x"]),
        train=TrainConfig(out_dir=tmp_path / "run", seed=np.uint8(7)),
    )
    assert (config.model.n_layer, config.model.dropout, config.optim.betas) == (3, 0.5, (0.5, 0.25))
    assert (config.data.corpus, config.train.out_dir) == ((str(tmp_path), "x"), f"{tmp_path}/run")
    assert [type(value) for value in (config.model.n_layer, config.model.dropout)] == [int, float]
    (tmp_path / "c.yaml").write_text(dump_config(config), encoding="utf-8")
    assert load_config(tmp_path / "c.yaml") == config
    with pytest.raises(UserError, match=r"n_layer = 0\.5: needs a whole number"):
        ModelConfig(n_layer=np.float32(0.5))


def test_a_tilde_is_the_home_folder_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.yaml").write_text(
        "{data: {corpus: [~/a, ~b, c~/d]}, train: {out_dir: ~/run, init_from: '~'}, tokenizer: {folder: ~/t}}"
    )
    config = load_config("~/c.yaml", {"data.val_corpus": "~/v"})
    assert config.data.corpus == (f"{tmp_path}/a", "~b", "c~/d")
    assert config.data.val_corpus == f"{tmp_path}/v"
    assert (config.train.out_dir, config.train.init_from) == (f"{tmp_path}/run", str(tmp_path))
    assert config.tokenizer.folder == f"{tmp_path}/t"
    assert TrainConfig(out_dir=Path("~/run")).out_dir == f"{tmp_path}/run"


def test_the_source_is_named_where_the_mistake_has_no_key():
    class Both(Section):
        a: int = 0

    with pytest.raises(UserError, match=r"^here = \[\]: needs keys of its own$"):
        validate(Both, [], "here")


@pytest.mark.parametrize(("number", "code"), [(errno.EMFILE, 1), (errno.EIO, 1), (errno.EACCES, 2)])
def test_a_config_that_the_machine_cannot_read_exits_1(tmp_path, monkeypatch, capsys, number, code):
    def fails(path, *args, **options):
        raise OSError(number, os.strerror(number), str(path))

    (tmp_path / "c.yaml").write_text("train: {max_steps: 1}\n")
    monkeypatch.setattr(os, "open", fails)
    assert main(["prepare", str(tmp_path / "c.yaml")]) == code
    assert capsys.readouterr().err.count("\n") == 1
