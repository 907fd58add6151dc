"""Damage in any byte of a run folder or its cache is noticed or mended."""

import flips
import forked
import pytest

from gptmini.checkpoint import state

pytestmark = [
    pytest.mark.skipif("not hasattr(__import__('os'), 'fork')"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]


def test_a_flipped_byte_ends_in_the_same_bits_or_is_named(tmp_path, long, monkeypatch):
    forked.reuse_kernel_digest(monkeypatch)
    ends = flips.check_flipped_bytes(tmp_path, 1 if long else 797)
    print(f"flipped bytes of a run folder and its cache: {ends.total()}: {dict(ends)}")
    assert ends.total() >= 15


def test_a_checkpoint_that_is_not_verified_would_be_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(state, "verify", lambda folder, only=(): None)
    with pytest.raises(AssertionError, match="safetensors"):
        flips.check_flipped_bytes(tmp_path, 300, only="model.safetensors")
