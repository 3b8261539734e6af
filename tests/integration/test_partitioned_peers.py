"""MONAI's and nnU-Net's networks, divided over processes, take the step of the whole volume."""

from __future__ import annotations

import pytest

from tests.partition_ranks import step_of, work_of
from tests.peers import peer
from tests.process_group import processes
from tests.training_oracle import assert_same_step, masked_step

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore:::monai")]
pytest.importorskip("monai", reason="MONAI comes with the extra peers")

LEVELS = (4, 8, 8)
NETS = {
    "UNet": {"num_res_units": 2, "norm": "batch"},
    "SegResNet": {},
    "DynUNet": {},
    "VNet": {},
    "PlainConvUNet": {},
    "ResidualEncoderUNet": {},
}


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    with processes(4, tmp_path_factory.mktemp("group")) as found:
        yield found


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.nightly if n == "VNet" else ()) for n in NETS]
)
@pytest.mark.parametrize(
    "bounds", [((0, 13, 16), (0, 8, 16), (0, 16)), ((0, 5, 7, 16), (0, 16), (0, 16))]
)
def test_networks_of_others_over_processes(group, name, bounds):
    # The coarsest level of VNet's five has three voxels: of two, norms leave but the signs.
    bounds = (*bounds[:2], (0, 48)) if name == "VNet" else bounds
    work = work_of(peer(name, LEVELS, **NETS[name]), bounds)
    one = masked_step(work.module, work.x, work.sizes, work.loss)
    assert_same_step(one, step_of(group, work))
