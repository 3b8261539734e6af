from __future__ import annotations

import pytest

from volflow.errors import InvalidInput
from volflow.geometry.budget import format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("12B", 12),
        ("1kB", 1000),
        ("1KiB", 1024),
        ("1k", 1024),
        ("2GiB", 2 * 2**30),
        ("2GB", 2 * 10**9),
        ("2G", 2 * 2**30),  # as SLURM writes it
        ("0.5 MiB", 2**19),
        (" 400 mb ", 400 * 10**6),
        ("1.5TiB", 3 * 2**39),
        (7, 7),
        (1e6, 10**6),
    ],
)
def test_reads_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "0", 0, -1, "-1GB", "GiB", "2 bananas", "1.2.3MB", "nan", "inf", float("nan"),
     float("inf"), "9" * 400, "2GiB 3", "1e9"],
)  # fmt: skip
def test_refuses_what_is_no_size(text):
    with pytest.raises(InvalidInput, match='memory must be a positive amount like "2GiB"'):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1000 B"),
        (1024, "1 KiB"),
        (1023 * 1024, "1023 KiB"),
        (1536 * 1024, "1.5 MiB"),
        (5 * 2**40, "5 TiB"),
        (3 * 2**50, "3 PiB"),
    ],
)
def test_prints_sizes(size, text):
    assert format_bytes(size) == text


def test_what_is_printed_is_about_what_was_meant():
    for size in (1, 777, 4096, 123_456_789, 2**35 + 17, 10**14):
        assert parse_bytes(format_bytes(size)) == pytest.approx(size, rel=5e-3)
