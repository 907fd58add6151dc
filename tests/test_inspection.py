"""Look inside: what is recorded is what the model computes."""

import math

import httpx
import numpy as np
import pytest
import torch
from web_server import running, train_run

import gptmini
from gptmini import record_attention
from gptmini.web.inspection import inspect, neighbors, next_tokens, token_log_probabilities

IDS = list(b"To be, or not to be")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train_run(tmp_path_factory.mktemp("inspection"))


@pytest.fixture(scope="module")
def model(run):
    return gptmini.load(run)[0]


@pytest.fixture(scope="module")
def post(run):
    with running(run) as url, httpx.Client(base_url=url) as client:
        yield lambda name, **body: client.post(f"/api/{name}", json={"model": "tiny", **body})


def test_attention_is_that_of_the_recorder_and_its_rows_sum_to_one(model):
    found = inspect(model, IDS).attention  # (n_layer, H, T, T)
    with record_attention(model) as weights:
        model(torch.tensor([IDS]))
    assert torch.equal(found, torch.cat(weights))
    assert found.sum(dim=-1) == pytest.approx(torch.ones(2, 2, len(IDS)), abs=1e-5)
    assert not found.triu(1).any()  # nothing of the future


def test_the_last_layer_of_the_lens_is_the_output(model):
    found = inspect(model, IDS)
    expected = model(torch.tensor([IDS]))[0].softmax(dim=-1).topk(5)
    assert len(found.lens) == 3
    for t in range(len(IDS)):
        assert [i for i, _ in found.lens[-1][t]] == expected.indices[t].tolist()
        assert [p for _, p in found.lens[-1][t]] == pytest.approx(expected.values[t].tolist(), abs=1e-6)


def test_the_lens_reads_the_residual_stream_after_each_block(model):
    found = inspect(model, IDS)
    x = model.token_embedding(torch.tensor([IDS])) + model.position_embedding.weight[: len(IDS)]
    mask = gptmini.model.causal_mask(len(IDS), len(IDS))
    for layer, block in enumerate([None, *model.blocks]):
        x = x if block is None else block(x, mask)
        expected = model.lm_head(model.ln_f(x))[0].softmax(dim=-1).topk(5).values
        probabilities = [[p for _, p in position] for position in found.lens[layer]]
        assert torch.tensor(probabilities) == pytest.approx(expected.detach(), abs=1e-6)


def test_surprisal_is_in_bits(model):
    log_probabilities = model(torch.tensor([IDS]))[0].log_softmax(dim=-1)
    expected = [-log_probabilities[t - 1, i].item() / math.log(2) for t, i in enumerate(IDS)][1:]
    first, *found = inspect(model, IDS).surprisal
    assert first is None
    assert found == pytest.approx(expected, abs=1e-4)


def test_a_look_leaves_no_hook_behind(model):
    before = [(name, len(module._forward_hooks)) for name, module in model.named_modules()]
    attend = model.blocks[0].attn.attend
    inspect(model, IDS)
    assert [(name, len(module._forward_hooks)) for name, module in model.named_modules()] == before
    assert model.blocks[0].attn.attend is attend


def test_of_a_long_text_the_end_is_shown(model):
    found = inspect(model, IDS * 3)
    assert found.ids == (IDS * 3)[-32:]  # the context
    assert found.attention.shape == (2, 2, 32, 32)


def test_one_token_alone_has_no_surprisal(model):
    found = inspect(model, [84])
    assert (found.surprisal, found.attention.flatten().tolist()) == ([None], [1.0] * 4)


def test_neighbors_are_the_nearest_by_cosine(model):
    table = model.token_embedding.weight
    cosines = torch.nn.functional.cosine_similarity(table, table[84:85])
    expected = [i for i in cosines.argsort(descending=True).tolist() if i != 84][:20]
    found = neighbors(model, 84)
    assert [i for i, _ in found] == expected
    assert [c for _, c in found] == pytest.approx(cosines[expected].tolist(), abs=1e-5)


def test_scores_of_a_text_are_its_log_probabilities(model):
    expected = model(torch.tensor([IDS]))[0].log_softmax(dim=-1)[:-1]
    assert torch.stack(list(token_log_probabilities(model, IDS))) == pytest.approx(
        expected.detach(), abs=1e-5
    )
    assert list(token_log_probabilities(model, [84])) == []


def test_a_growing_text_has_the_next_tokens_of_the_whole(model):
    for length in (5, 7, 6, 19, 1):
        expected = model(torch.tensor([IDS[:length]]))[0, -1].softmax(dim=-1).topk(20)
        assert [p for _, p in next_tokens(model, IDS[:length])] == pytest.approx(
            expected.values.tolist(), abs=1e-6
        )


def test_the_server_hands_on_what_is_recorded(post, model):
    expected = inspect(model, IDS)
    found = post("inspect", ids=IDS).json()
    assert [token["id"] for token in found["tokens"]] == IDS
    assert found["surprisal"][1:] == pytest.approx(expected.surprisal[1:], rel=1e-5)
    for layer, expected_layer in zip(found["lens"], expected.lens, strict=True):
        for position, expected_position in zip(layer, expected_layer, strict=True):
            assert [(token["id"]) for token, _ in position] == [i for i, _ in expected_position]
    T = len(IDS)
    for layer in range(2):
        for head in range(2):
            data = post("attention", ids=IDS, layer=layer, head=head).content
            weights = np.frombuffer(data, dtype="<f4").reshape(T, T)
            assert weights == pytest.approx(expected.attention[layer, head].numpy(), abs=1e-6)
    maps = np.frombuffer(post("attention", ids=IDS, layer=None, head=None).content, dtype=np.uint8)
    assert np.abs(maps.reshape(2, 2, T, T) / 255 - expected.attention.numpy()).max() <= 0.5 / 255 + 1e-6
    nearest = post("neighbors", id=84).json()
    assert [token["id"] for token, _ in nearest] == [i for i, _ in neighbors(model, 84)]


def test_a_head_that_is_not_there_is_refused(post):
    assert (
        post("attention", ids=IDS, layer=2, head=0).json()["error"]["message"]
        == "there is no layer 2 and head 0: the model has 2 of 2"
    )
