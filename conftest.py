"""For the doctests in ``volflow/``: each runs in a scratch folder."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _scratch_for_doctests(request, tmp_path, monkeypatch):
    if isinstance(request.node, pytest.DoctestItem):
        monkeypatch.chdir(tmp_path)
