import torch

from saecache.train.selection import screening
from saecache.train.selection.bounds import ErrorBounds
from saecache.train.selection.screening import bfloat16_pays


def test_small_encoders_are_not_tried(monkeypatch):
    monkeypatch.setattr(screening, "_is_faster", lambda width: True)
    assert not bfloat16_pays(1023, 64)
    assert bfloat16_pays(1024, 64)


def test_a_processor_that_breaks_the_bounds_is_not_used(monkeypatch):
    monkeypatch.setattr(screening, "_seconds", lambda x, w, out: 3.0 if out.dtype == torch.float32 else 1.0)
    assert screening._is_faster.__wrapped__(32)
    monkeypatch.setattr(screening, "product_bounds", lambda *a: _far_too_tight())
    assert not screening._is_faster.__wrapped__(32)


def test_slower_is_not_used(monkeypatch):
    monkeypatch.setattr(screening, "_seconds", lambda x, w, out: 1.0)
    assert not screening._is_faster.__wrapped__(32)


def _far_too_tight():
    return ErrorBounds(slack=torch.zeros(screening.ROWS), norm=torch.zeros(screening.LATENTS), relative=0.0)
