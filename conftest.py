"""For the doctests in ``volflow/``: each runs in a scratch folder."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _scratch_for_doctests(request):
    if isinstance(request.node, pytest.DoctestItem):
        folder = request.getfixturevalue("tmp_path")
        request.getfixturevalue("monkeypatch").chdir(folder)
