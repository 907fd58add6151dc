"""/v1/completions, asked by OpenAI's own client."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import httpx
import openai
import pytest
import torch
from openai import OpenAI
from web_server import running, train_run

import gptmini


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train_run(tmp_path_factory.mktemp("completions"))


@pytest.fixture(scope="module")
def client(run):
    with running(run) as url, OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def loaded(run):
    return gptmini.load(run)


def complete(client, **options):
    return client.completions.create(**{"model": "tiny", "prompt": "To be", "seed": 5, **options})


def test_a_completion_is_the_text_of_generate_text(client, loaded):
    answer = complete(client, max_tokens=10, temperature=0.7, top_p=0.9, extra_body={"top_k": 40})
    options = {"max_new_tokens": 10, "seed": 5, "temperature": 0.7, "top_p": 0.9, "top_k": 40}
    (text,) = gptmini.generate_text(*loaded, "To be", **options)
    (choice,) = answer.choices
    assert "To be" + choice.text == text
    assert choice.finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (
        5,
        10,
        15,
    )
    assert (answer.object, answer.model, choice.logprobs) == ("text_completion", "tiny", None)


def test_without_options_it_takes_openais_defaults(client):
    answer = client.completions.create(model="tiny", prompt="To be", temperature=None)
    (choice,) = answer.choices
    assert answer.usage.completion_tokens == 16 or choice.finish_reason == "stop"


def test_a_stream_is_the_same_text_in_pieces(client):
    options = {"max_tokens": 12, "n": 2, "logprobs": 2, "echo": True}
    whole = complete(client, **options)
    chunks = list(complete(client, **options, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage == whole.usage
    assert chunks[-1].choices == []
    for choice in whole.choices:
        pieces = [c for chunk in chunks for c in chunk.choices if c.index == choice.index]
        assert "".join(piece.text for piece in pieces) == choice.text
        assert [
            lp for piece in pieces for lp in piece.logprobs.token_logprobs
        ] == choice.logprobs.token_logprobs
        assert [at for piece in pieces for at in piece.logprobs.text_offset] == choice.logprobs.text_offset
        assert pieces[-1].finish_reason == choice.finish_reason
        assert len(pieces) > 5
    assert all(chunk.id == whole.id or chunk.id.startswith("cmpl-") for chunk in chunks)


def test_logprobs_are_the_models_before_temperature(client, loaded):
    found = complete(client, max_tokens=4, temperature=0.3, logprobs=3, echo=True).choices[0].logprobs
    model, _ = loaded
    ids = [ord(token) if len(token) == 1 else int(token[-2:], 16) for token in found.tokens]
    expected = model(torch.tensor([ids]))[0].log_softmax(dim=-1)  # (9, V)
    assert found.token_logprobs[0] is None
    assert found.top_logprobs[0] is None
    for t, token in enumerate(ids[1:]):
        assert found.token_logprobs[t + 1] == pytest.approx(expected[t, token].item(), abs=1e-4)
        likeliest = sorted(found.top_logprobs[t + 1].values(), reverse=True)[:3]
        assert likeliest == pytest.approx(expected[t].topk(3).values.tolist(), abs=1e-4)
        assert found.tokens[t + 1] in found.top_logprobs[t + 1]
    assert found.text_offset[:5] == [0, 1, 2, 3, 4]


def test_offsets_begin_behind_the_prompt_without_echo(client):
    assert complete(client, max_tokens=2, logprobs=0).choices[0].logprobs.text_offset[0] == len("To be")


def test_bytes_that_are_no_character_have_a_name(client):
    found = complete(client, prompt="Ä", max_tokens=0, logprobs=0, echo=True).choices[0]
    assert (found.text, found.logprobs.tokens) == ("Ä", ["bytes:\\xc3", "bytes:\\x84"])
    assert found.logprobs.text_offset == [0, 0]


def test_scoring_alone_generates_nothing(client):
    answer = complete(client, max_tokens=0, echo=True, logprobs=1)
    assert (answer.choices[0].text, answer.usage.completion_tokens) == ("To be", 0)
    assert len(answer.choices[0].logprobs.tokens) == 5


@pytest.mark.parametrize(
    "prompt", [["To", "be or"], [[84, 111], [98, 101, 32, 111, 114]]], ids=["texts", "ids"]
)
def test_several_prompts_have_their_texts_in_order(client, prompt):
    answer = complete(client, prompt=prompt, n=2, max_tokens=3, echo=True)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text[:2] for choice in answer.choices] == ["To", "To", "be", "be"]
    assert answer.usage.prompt_tokens == 7
    # A text depends on its own prompt and the seed; copy k samples with seed + k.
    alone = complete(client, prompt=prompt[1], seed=6, max_tokens=3, echo=True)
    assert answer.choices[3].text == alone.choices[0].text


def test_one_prompt_may_be_ids(client):
    assert complete(client, prompt=[84, 111]).choices == complete(client, prompt="To").choices


@pytest.mark.parametrize("stream", [False, True])
def test_a_text_ends_before_a_stop_string(client, stream):
    whole = complete(client, max_tokens=40).choices[0].text
    stop = whole[7:9]
    answer = complete(client, max_tokens=40, stop=[stop, "zzz"], stream=stream)
    pieces = [chunk.choices[0] for chunk in answer] if stream else answer.choices
    assert "".join(piece.text for piece in pieces) == whole[: whole.index(stop)]
    assert pieces[-1].finish_reason == "stop"
    assert complete(client, max_tokens=40, stop=stop).choices[0].text == whole[: whole.index(stop)]


def test_models_are_listed_and_found(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny@2").id == "tiny@2"
    with pytest.raises(openai.NotFoundError, match="no model is called 'gpt-5' here"):
        client.models.retrieve("gpt-5")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"best_of": 3}, "best_of is not done here: ask for n texts"),
        ({"presence_penalty": 1.0}, "presence_penalty and frequency_penalty are not done"),
        ({"suffix": "."}, "suffix and logit_bias are not done here"),
        ({"logit_bias": {"50": 1}}, "suffix and logit_bias are not done here"),
        ({"prompt": "To be" * 10}, "the prompt has 50 tokens, but the model's context is 32: shorten it"),
        ({"prompt": []}, "prompt is an empty list"),
        ({"prompt": ["a", 3]}, "request: prompt = ['a', 3]: needs a text, a list of texts"),
        ({"prompt": [[]]}, "a prompt holds no tokens"),
        ({"prompt": [257]}, "token id 257 is outside the tokenizer's vocabulary of 257"),
        ({"prompt": ["a"] * 9, "n": 2}, "9 prompts x 2 texts: at most 16 at once"),
        ({"max_tokens": 10_000}, "request: max_tokens = 10000: needs a whole number"),
        ({"temperature": "hot"}, "request: temperature = 'hot': needs a number"),
        ({"extra_body": {"max_new_tokens": 3}}, "request: unknown key max_new_tokens"),
        ({"stop": ""}, "request: stop = ''"),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_mistake_is_told_as_openai_tells_it(client, options, message, stream):
    with pytest.raises(openai.BadRequestError) as error:
        complete(client, stream=stream, **options)
    assert message in error.value.message
    assert error.value.type == "invalid_request_error"


def test_harmless_keys_of_openais_are_taken(client):
    harmless = {"best_of": 1, "presence_penalty": 0, "logit_bias": {}, "suffix": None, "user": "me"}
    assert complete(client, **harmless).choices == complete(client).choices


def test_options_at_their_edges_give_a_text(client):
    edges = {"top_p": 5e-324, "temperature": 100, "extra_body": {"min_p": 1.0, "repetition_penalty": 100.0}}
    assert complete(client, max_tokens=3, **edges).usage.completion_tokens == 3
    assert complete(client, prompt=[84], max_tokens=0, echo=True, logprobs=0).choices[0].text == "T"


def test_an_unknown_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError, match="no model is called 'gpt-5' here"):
        complete(client, model="gpt-5")


def test_a_token_is_the_api_key(run):
    with running(run, token="secret") as url:
        with OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0) as client:
            assert complete(client, max_tokens=1).usage.completion_tokens == 1
        with OpenAI(base_url=f"{url}/secret/v1", api_key="unused", max_retries=0) as client:
            assert complete(client, max_tokens=1).usage.completion_tokens == 1
        client = OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0)
        with client, pytest.raises(openai.AuthenticationError, match="needs the token"):
            complete(client)


def test_a_full_queue_is_an_error_that_clients_retry(client, monkeypatch):
    monkeypatch.setattr("gptmini.web.jobs.MAX_WAITING", 0)
    with pytest.raises(openai.InternalServerError) as error:
        complete(client)
    assert error.value.status_code == 503
    assert error.value.response.headers["retry-after"].isdecimal()


def test_the_schema_names_every_option(client):
    schema = httpx.get(str(client.base_url).replace("/v1/", "/openapi.json")).json()
    keys = schema["components"]["schemas"]["CompletionRequest"]["properties"]
    answers = {path: item.popitem()[1]["responses"]["200"] for path, item in schema["paths"].items()}
    assert "text/event-stream" in answers["/v1/completions"]["content"]
    assert answers["/api/generate"]["content"].keys() == {"text/event-stream"}
    assert answers["/api/attention"]["content"].keys() == {"application/octet-stream"}
    assert {"prompt", "max_tokens", "top_p", "top_k", "min_p", "repetition_penalty", "seed"} <= keys.keys()


def test_the_examples_of_the_page_run(run, tmp_path, capfd):
    page = (Path(__file__).parent.parent / "docs" / "serve.md").read_text(encoding="utf-8")
    (python,) = re.findall(r"^```py\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    curl = re.search(r"^curl .*?\n.*?$", page, re.MULTILINE)[0]
    shutil.copytree(run, tmp_path / "my_text")
    with running(tmp_path / "my_text") as url:
        exec(python.replace("http://localhost:8000", url))
        assert len(capfd.readouterr().out) > 20
        if shutil.which("curl"):
            subprocess.run(curl.replace("localhost:8000", url), shell=True, check=True)
            answer = json.loads(capfd.readouterr().out)
            assert answer["usage"]["completion_tokens"] == 20
