"""Units: lengths however they are spelled."""

import pytest

from volflow.geometry.units import metres


@pytest.mark.parametrize(
    ("unit", "length"),
    [
        ("meter", 1), ("nanometer", 1e-9), ("micrometer", 1e-6), ("centimeter", 1e-2),
        ("kilometer", 1e3), ("angstrom", 1e-10), ("inch", 0.0254), ("µm", 1e-6), ("mm", 1e-3),
        ("Å", 1e-10), ("micron", 1e-6), ("pixel", None), ("second", None), ("", None), (None, None),
    ],
)  # fmt: skip
def test_units_in_metres(unit, length):
    assert metres(unit) == (None if length is None else pytest.approx(length))
