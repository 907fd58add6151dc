"""The shipped configs are valid, name the schema, and the small ones train."""

import json
from pathlib import Path

import jsonschema
import pytest

from gptmini.config import Config, TrainConfig, load_config
from gptmini.training.log_files import read_metrics
from gptmini.training.run import train
from gptmini.yaml_io import parse_yaml

FOLDER = Path(__file__).parent.parent / "configs"
CONFIGS = sorted(FOLDER.glob("*.yaml"))


def test_there_are_configs():
    assert len(CONFIGS) >= 5


def test_the_committed_schema_is_that_of_the_config():
    made = json.dumps(Config.model_json_schema(), indent=2) + "\n"
    assert (FOLDER / "schema.json").read_text(encoding="utf-8") == made, (
        'run: python -c "import json; from gptmini import Config; '
        'print(json.dumps(Config.model_json_schema(), indent=2))" > configs/schema.json'
    )


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_is_valid_and_its_header_tells_what_it_is_for(path):
    load_config(path)
    text = path.read_text(encoding="utf-8")
    jsonschema.validate(parse_yaml(text), json.loads((FOLDER / "schema.json").read_text(encoding="utf-8")))
    assert text.startswith("# yaml-language-server: $schema=schema.json\n")
    for heading in ("# Purpose:", "# Hardware:", "# Expect:", "# Command:"):
        assert heading in text


@pytest.mark.parametrize("name", ["python_docs", "my_text", "shakespeare_chars"])
def test_a_small_config_trains_two_steps(name, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"Sentence {i} says that {i} times {i} is {i * i}.\n" for i in range(3000)))
    config = load_config(
        FOLDER / f"{name}.yaml",
        {
            "data.corpus": str(text),
            "train.out_dir": str(tmp_path / "run"),
            "train.max_steps": 2,
            "train.eval_tokens": 500,
            "train.sample_interval": 2,
            "train.log_interval": 1,
        },
    )
    assert isinstance(config.train, TrainConfig)
    train(config, quiet=True)
    losses = [m["loss"] for m in read_metrics(tmp_path / "run" / "metrics.jsonl") if m["split"] == "train"]
    assert losses[1] < losses[0]
