"""What a network sees of a patch is what it sees in a prediction."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import volflow as vf
from tests.oracle import padded_by
from volflow.errors import InvalidInput, ResumeRefused
from volflow.geometry.frame import Frame
from volflow.geometry.normalize import normalization
from volflow.geometry.outside import Padding
from volflow.geometry.roi import Roi
from volflow.sampling.cases import named_arrays
from volflow.sampling.cases.open_cases import open_cases
from volflow.volumes.normalizing import constants_of
from volflow.volumes.statistics import statistics

PADDINGS = [0, -2.5, "edge", "reflect"]
NORMALIZE = [
    None, "minmax", "zscore", "zscore:foreground", "percentile:1,90", "window:100,400", "scale:255",
    np.sqrt,
]  # fmt: skip

RNG = np.random.default_rng(0)
IMAGE = (RNG.integers(0, 3, (5, 21, 9)) * RNG.integers(0, 300, (5, 21, 9))).astype("uint16")
LABEL = (IMAGE > 200).astype("uint8")

# What the network of a prediction was given.
seen: list[np.ndarray] = []


class Recording(torch.nn.Module):
    """Keeps the patches that it is given."""

    def forward(self, batch):
        seen.extend(batch.numpy().copy())
        return batch


def scaled(image, choice):
    """The image as a network sees it, ``czyx``."""
    if choice is None or callable(choice):
        return (choice or np.asarray)(image[None].astype("f4"))
    stats = normalization(choice, 1, lambda foreground: statistics(image, foreground=foreground))
    out = np.empty((1, *image.shape), "f4")
    stats.apply(image[None], out)
    return out


def box_of(array, roi, padding):
    """A box of an array ``czyx`` that NumPy padded."""
    ends = zip(roi.stop, array.shape[1:], strict=True)
    far = [max(0, *(-a for a in roi.start), *(b - n for b, n in ends))] * 3
    whole = padded_by(padding, array, [(0, 0), *((f, f) for f in far)])
    return whole[(slice(None), *roi.shift(far).slices())]


def roi_of(sample):
    where = sample["location"].tolist()
    return Roi(tuple(where[:3]), tuple(where[3:]))


class TestIsThatOfAPrediction:
    @pytest.mark.parametrize("padding", PADDINGS)
    @pytest.mark.parametrize("normalize", NORMALIZE)
    def test_patch_by_patch(self, predict, stored, normalize, padding):
        volume, shown = stored(IMAGE), {"normalize": normalize, "padding": padding}
        if padding == -2.5 and normalize is None:
            shown["normalize"] = "scale:1"  # uint16 holds no such value
        seen.clear()
        predict(volume, Recording(), patch=(8, 8, 8), overlap=0.5, blend="crop", **shown)
        stream = vf.PatchStream(volume, vf.GridSampler(8, overlap=0.5), **shown)
        patches = [sample["image"].numpy() for sample in stream]
        assert len(patches) == 5 * 2
        for patch in patches:
            assert patch.dtype == np.float32 or normalize is None
            assert any(np.array_equal(patch, one) for one in seen)

    def test_each_image_has_its_own_statistics(self, predict, stored):
        case = {"t1": stored(IMAGE, "a.zarr"), "flair": stored(IMAGE[::-1] // 3 + 7, "b.zarr")}
        seen.clear()
        predict(case, Recording(), patch=8, blend="crop", normalize="zscore")
        stream = vf.PatchStream(case, vf.GridSampler(8, overlap=0.25), normalize="zscore")
        for sample in stream:
            both = torch.cat([sample["t1"], sample["flair"]]).numpy()
            assert any(np.array_equal(both, one) for one in seen)


class TestInAFrame:
    @pytest.mark.parametrize("frame", ["RAS", "LPI", "IRP", "sar"])
    def test_patches_are_those_of_a_prediction(self, predict, stored, frame):
        volume = stored(IMAGE, orientation="SAR", spacing=(3, 2, 1), unit="mm")
        options = {"frame": frame, "normalize": "zscore", "padding": "reflect"}
        seen.clear()
        predict(volume, Recording(), patch=(6, 8, 10), overlap=0.5, blend="crop", **options)
        stream = vf.PatchStream(volume, vf.GridSampler((6, 8, 10), overlap=0.5), **options)
        shown = Frame.between("SAR", frame).show(scaled(IMAGE, "zscore"))
        for sample in stream:
            patch = sample["image"].numpy()
            assert np.array_equal(patch, box_of(shown, roi_of(sample), "reflect"))
            assert any(np.array_equal(patch, one) for one in seen)
        assert stream.cases[0].spacing == Frame.between("SAR", frame).reorder((3, 2, 1))

    @pytest.mark.parametrize(
        "sampler",
        [
            vf.UniformSampler((3, 6, 4)),
            vf.UniformSampler((3, 6, 4), border="pad"),
            vf.LabelSampler((3, 16, 4), probabilities={0: 1, 1: 2}),
            vf.WeightedSampler((3, 6, 4), "label", border="pad"),
            vf.GridSampler((3, 6, 4), overlap=1),
        ],
    )
    def test_a_stream_is_that_of_a_volume_stored_in_it(self, stored, small_superchunks, sampler):
        small_superchunks(500)
        turned = Frame.between("SAR", "LPI")
        here, there = (
            {
                name: stored(np.ascontiguousarray(show(array)), f"{name}-{letters}.zarr",
                             chunk=4, shard=8, orientation=letters)
                for name, array in (("image", IMAGE), ("label", LABEL))
            }
            for letters, show in (("SAR", np.asarray), ("LPI", turned.show))
        )  # fmt: skip
        number = None if isinstance(sampler, vf.GridSampler) else 60
        list(vf.PatchStream(here, sampler, number))  # whose counts are others
        streams = [
            vf.PatchStream(here, sampler, number, seed=2, frame="LPI"),
            vf.PatchStream(there, sampler, number, seed=2),
            vf.PatchStream(here, sampler, number, seed=2, frame="LPI"),  # its counts were kept
        ]
        for one, other, again in zip(*streams, strict=True):
            for name in ("location", "image", "label"):
                assert np.array_equal(one[name], other[name])
                assert np.array_equal(one[name], again[name])

    def test_a_state_belongs_to_its_frame(self, stored):
        volume = stored(IMAGE, orientation="SAR")
        stream = vf.PatchStream(volume, vf.UniformSampler(4), 4)
        with pytest.raises(ResumeRefused):
            vf.PatchStream(volume, vf.UniformSampler(4), 4, frame="RAS").load_state_dict(
                stream.state_dict()
            )


class TestReading:
    @settings(max_examples=60)
    @given(st.data())
    def test_a_box_is_that_of_the_whole_array_padded_by_numpy(self, data):
        shape = tuple(data.draw(st.integers(1, 9)) for _ in range(3))
        start = tuple(data.draw(st.integers(-12, n + 3)) for n in shape)
        roi = Roi(start, tuple(a + data.draw(st.integers(1, 14)) for a in start))
        padding, choice = (
            data.draw(st.sampled_from(PADDINGS)),
            data.draw(st.sampled_from(NORMALIZE)),
        )
        if choice is None and padding == -2.5:
            padding = 7  # uint16 holds no such value
        values = np.random.default_rng(0).integers(0, 500, shape).astype("uint16")
        (case,) = open_cases(values)
        known = None if choice is None else constants_of(choice, case.sources["image"])
        case = replace(
            case,
            normalize={} if known is None else {"image": known},
            padding={"image": Padding(padding)},
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(named_arrays, "READ_BYTES", 300)  # some rows at a time
            found = case.read("image", roi)
        array = values[None] if choice is None else scaled(values, choice)
        expected = box_of(array.astype("f8"), roi, padding).astype(found.dtype)
        assert np.array_equal(found, expected)


class TestOtherArrays:
    def test_classes_hold_the_label_that_losses_ignore(self):
        case = {"image": IMAGE, "label": LABEL, "prob": LABEL.astype("f4")}
        sampler = vf.WeightedSampler((8, 16, 8), border="pad")
        stream = vf.PatchStream(
            case, sampler, 20, normalize="minmax", padding="edge", ignore_label=255
        )
        for sample in stream:
            roi = roi_of(sample)
            assert sample["label"].dtype == torch.uint8
            assert np.array_equal(sample["label"], box_of(LABEL[None], roi, 255))
            assert np.array_equal(sample["prob"], box_of(LABEL[None].astype("f4"), roi, 0))
            expected = box_of(scaled(IMAGE, "minmax"), roi, "edge")
            assert np.array_equal(sample["image"], expected)
        batch = next(iter(stream.loader(4)))
        assert batch["label"].dtype == torch.int64
        assert {255} < set(batch["label"].unique().tolist()) <= {0, 1, 255}

    def test_only_named_images_are_normalised(self):
        case = {"ct": IMAGE, "dose": IMAGE, "label": LABEL}
        stream = vf.PatchStream(case, vf.GridSampler(8), normalize={"ct": "window:0,300"})
        for sample in stream:
            assert sample["ct"].dtype == torch.float32
            assert sample["dose"].dtype == torch.uint16
            assert np.array_equal(sample["dose"], box_of(IMAGE[None], roi_of(sample), 0))


class TestSmallVolumes:
    @pytest.mark.parametrize(
        "sampler",
        [
            vf.UniformSampler((8, 6, 16)),
            vf.WeightedSampler((8, 6, 16), "label"),
            vf.LabelSampler((8, 6, 16), probabilities={1: 1}),
        ],
    )
    def test_are_in_each_patch_whole(self, sampler):
        case = {"image": IMAGE, "label": LABEL}
        stream = vf.PatchStream(case, sampler, 50, padding="reflect", lanes=2)
        for sample in stream:
            roi = roi_of(sample)
            assert (roi.start[0], roi.start[2]) == (-1, -3)
            assert 0 <= roi.start[1] <= 21 - 6
            assert np.array_equal(sample["image"], box_of(IMAGE[None], roi, "reflect"))
            assert np.array_equal(sample["label"], box_of(LABEL[None], roi, 0))

    def test_any_voxel_of_a_short_axis_may_be_drawn(self, small_superchunks):
        small_superchunks(1)
        label = np.zeros((5, 40, 3), "u1")
        label[0, 11, 2] = label[4, 30, 0] = 1
        case = {"image": label, "label": label}
        stream = vf.PatchStream(case, vf.LabelSampler((16, 7, 8)), 40, seed=1)
        starts = {tuple(sample["location"][:3].tolist()) for sample in stream}
        assert starts == {(-5, 8, -2), (-5, 27, -2)}


def test_what_is_seen_is_no_part_of_the_order():
    plain = vf.PatchStream(IMAGE, vf.UniformSampler(4), 20, seed=1)
    shown = vf.PatchStream(IMAGE, vf.UniformSampler(4), 20, seed=1, normalize="zscore", padding=3)
    shown.load_state_dict(plain.state_dict())
    places = [[s["location"].tolist() for s in stream] for stream in (plain, shown)]
    assert places[0] == places[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalize": "max"}, r"^unknown normalize 'max'; use minmax, zscore, "),
        ({"normalize": "scale:0"}, r"^normalize 'scale:0' needs a number above 0, such as "),
        (
            {"normalize": {"ct": "zscore"}},
            r"^normalize names ct, but the images are image; arrays ",
        ),
        ({"normalize": {"label": "zscore"}}, r"^normalize names label, but the images are image"),
        ({"padding": "mirror"}, r'^padding must be a finite number, "edge" or "reflect"; got '),
        ({"padding": -1}, r'^padding -1 does not fit in array "image" of uint16; give another on'),
        ({"padding": 0.5}, r'^padding 0.5 does not fit in array "image" of uint16'),
        (
            {"ignore_label": -1},
            r'^ignore_label -1 does not fit in array "label" of uint8; give a l',
        ),
        ({"frame": "RAS"}, r"^case case0: frame 'RAS' needs a volume with orientation, and this "),
        ({"frame": "RAX"}, r"^case case0: frame must be three letters, one of each pair "),
        ({"ignore_label": 0.5}, r"^ignore_label must be a whole number; got 0.5$"),
    ],
)
def test_refusals_are_one_line(options, message):
    case = {"image": IMAGE, "label": LABEL}
    with pytest.raises(InvalidInput, match=message) as refused:
        vf.PatchStream(case, vf.GridSampler(8), **options)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("wrong", [np.full(IMAGE.shape, np.nan, "f4"), None])
def test_a_case_that_cannot_be_measured_is_named(stored, wrong):
    cases = {"a": stored(IMAGE, "a.zarr"), "b": np.zeros_like(IMAGE) if wrong is None else wrong}
    normalize = "zscore:foreground" if wrong is None else "zscore"
    with pytest.raises(InvalidInput, match=r"^case b, image: statistics need at least one voxel"):
        vf.PatchStream(
            {name: {"image": one} for name, one in cases.items()},
            vf.GridSampler(8),
            normalize=normalize,
        )


def test_a_function_that_no_process_can_be_sent_is_refused():
    stream = vf.PatchStream(IMAGE, vf.UniformSampler(4), 8, normalize=lambda voxels: voxels / 2)
    assert len(list(stream.loader(4))) == 2
    with pytest.raises(InvalidInput, match=r"to which normalize cannot be sent .*; define its fu"):
        stream.loader(4, num_workers=2)


class TestCasesOfAnotherStream:
    @pytest.fixture
    def first(self):
        cases = {"a": {"image": IMAGE, "label": LABEL}, "b": {"image": IMAGE + 9, "label": LABEL}}
        return vf.PatchStream(
            cases, vf.UniformSampler(4), 2, normalize="zscore", padding="edge", ignore_label=255
        )

    def test_are_seen_as_there(self, first):
        grid = vf.GridSampler((6, 10, 9), padding=2)
        again, same = (
            vf.PatchStream(cases, grid, **shown)
            for cases, shown in (
                (first.cases[1:], {}),
                (
                    {"b": {"image": IMAGE + 9, "label": LABEL}},
                    {"normalize": "zscore", "padding": "edge", "ignore_label": 255},
                ),
            )
        )
        for one, other in zip(again, same, strict=True):
            for name in ("image", "label"):
                np.testing.assert_array_equal(one[name], other[name])

    def test_may_be_seen_otherwise(self, first):
        grid = vf.GridSampler((5, 21, 9))
        raw = vf.PatchStream(first.cases, grid, normalize="none")
        np.testing.assert_array_equal(next(iter(raw))["image"][0], IMAGE)
        once = vf.PatchStream(first.cases, grid, normalize="minmax")
        np.testing.assert_array_equal(next(iter(once))["image"], scaled(IMAGE, "minmax"))

    def test_weights_are_no_image_any_more(self, first):
        weighted = vf.PatchStream(first.cases, vf.WeightedSampler(4, weight="image"), 2)
        assert not weighted.cases[0].normalize

    def test_beside_others_are_refused_unless_it_is_said_for_all(self, first):
        both = [*first.cases, {"image": IMAGE, "label": LABEL, "name": "c"}]
        with pytest.raises(InvalidInput, match=r"but a \(image\) and c \(nothing\) differ; say it"):
            vf.PatchStream(both, vf.GridSampler(5))
        assert len(vf.PatchStream(both, vf.GridSampler(5), normalize="zscore").cases) == 3
