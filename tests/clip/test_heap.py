"""Bounded passes leave no heap behind: freed memory goes back before the next pass."""

import torch

from vlcal.clip import text, tiny_clip
from vlcal.clip.heap import give_back


def test_every_bounded_pass_starts_with_freed_memory_given_back(monkeypatch):
    calls = []
    monkeypatch.setattr(text, "give_back", calls.append)
    tower = tiny_clip(0).text
    tokens = tower.tokenize(["a cat", "a dog", "a house", "a tree"])
    end = tower.end(tokens)
    prefix = tower.embed(tokens[:1, :2])[0].detach().requires_grad_()
    args = tokens[:, 2:], end - 2
    free = tower.encode_with_prefix(prefix, *args)
    assert calls == []
    each = text.KEPT * len(tower.source.transformer.resblocks) * tower.width * 4
    longest = each * int((end - 1).max())
    bounded = tower.encode_with_prefix(prefix, *args, max_bytes=longest)
    assert len(calls) == 4
    torch.testing.assert_close(bounded, free)
    bounded.sum().backward()
    assert len(calls) == 8  # each pass is run again


def test_giving_back_changes_no_values():
    kept = torch.arange(1000.0)
    give_back(torch.device("cpu"))
    assert torch.equal(kept, torch.arange(1000.0))
