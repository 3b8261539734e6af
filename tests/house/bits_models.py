"""Networks over volumes: blended, exact, lazy."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
from bits_inputs import (
    SHAPE,
    TILED,
    Cases,
    Pooled,
    Two,
    Work,
    columns,
    conv_net,
    encoder,
    enlarged,
    half_net,
    halved,
    labels,
    nifti,
    scan,
    stored,
    unused,
)
from bits_lines import rounded
from torch import nn

import volflow as vf

PATCHES: dict[str, Any] = {"patch": 8, "batch_size": 2, **TILED}
# Too little for the whole network: it runs in passes, whose blocks follow from measured times.
SMALL = {"memory": "52MiB"}


def predicted(volume: Any, model: Any, name: str | None = None, **options: Any) -> Any:
    out = name or unused("predicted")
    return vf.predict(volume, model, out, **(PATCHES | options))


def exactly(volume: Any, model: Any, **options: Any) -> Any:
    out = unused("exact")
    return vf.predict(volume, model, out, blend="exact", **(TILED | options))


def case(name: str, given: Any, model: Any, **options: Any) -> tuple[str, Work]:
    """A prediction by patches."""
    return f"predict/{name}", lambda: predicted(given, model, **options)


def blends() -> Cases:
    volume, net = stored("scan.zarr", scan()), conv_net()
    for blend, overlap in itertools.product(("crop", "average", "gaussian", "hann"), (0.25, 5)):
        yield case(f"{blend} overlap {overlap}", volume, net, blend=blend, overlap=overlap)
    yield case("overlap per axis", volume, net, overlap=(0.5, 0.25, 0), patch=(6, 8, 10))
    yield case("usual options", volume, net, patch=16, chunk=None, shard=None)
    for batch in (1, 3):
        yield case(f"batch {batch}", volume, net, batch_size=batch)
    yield case("narrow memory", volume, net, memory="51MiB", shard=8)
    yield case("small volume", scan((5, 19, 6)), net)
    yield case("smaller than the patch", scan((3, 4, 5)), net, blend="hann")
    for patch in ((1, 8, 8), (8, 1, 8), (8, 8, 1)):
        yield case(f"slices {patch}", volume, conv_net(dims=2), patch=patch)
    yield case("half the resolution", volume, half_net())
    yield case("half the resolution hann levels", volume, half_net(), blend="hann", levels=True)
    for named in (True, False):
        both = Two(conv_net(), conv_net(1, 3), named=named).eval()
        yield case(f"two outputs named {named}", volume, both)
    yield case("float64", volume, conv_net().double())
    yield case("norm of patches", volume, encoder("instance"))
    yield case("identity uint16", (scan() * 1000).astype("uint16"), nn.Identity())
    yield case("two channels", scan((2, *SHAPE)), conv_net(2))
    several = {"t1": scan(), "flair": scan(seed=2)}
    yield case("several volumes", several, conv_net(2), normalize="zscore")
    yield case("a Dask array", da.from_array(scan(), chunks=(7, 19, 11)) * 2, net)


def values() -> Cases:
    volume, net = stored("scan.zarr", scan()), conv_net()
    for flips in ("x", "zyx"):
        yield case(f"flips {flips}", volume, net, flips=flips)
    for choice in ("minmax", "zscore", "percentile", halved):
        name = f"normalize {getattr(choice, '__name__', choice)}"
        yield case(name, volume, net, normalize=choice)
    for activation in ("softmax", "sigmoid", halved):
        name = f"activation {getattr(activation, '__name__', activation)}"
        yield case(name, volume, net, activation=activation)
    for dtype in ("float16", "float64", "uint8", "int16"):
        yield case(f"dtype {dtype}", volume, net, dtype=dtype, activation=enlarged)
    yield case("scores levels", volume, net, levels=True, patch=(4, 8, 8), shard=16)
    classes: dict[str, Any] = {"output": "classes"}
    yield case("classes", volume, net, **classes)
    yield case("classes of one channel", volume, conv_net(1, 1), **classes)
    yield case("classes int16", volume, net, dtype="int16", **classes)
    yield case("classes softmax levels", volume, net, activation="softmax", levels=True, **classes)
    dark = scan()
    dark[:, 10:] *= 0.01
    yield case("skip below", dark, net, skip_below=0.1)
    yield case("skip below fill", dark, net, skip_below=0.1, fill=-1)
    yield case("skip below classes", dark, net, skip_below=0.1, fill=7, **classes)
    mask = np.pad(np.ones((9, 9, 9), "uint8"), ((3, 10), (0, 10), (8, 8)))
    yield case("mask", volume, net, mask=mask)


def frames() -> Cases:
    net = conv_net()
    image = columns()
    for codes, frame in (("LPS", "RAS"), ("RAS", "SAR"), ("PIR", "LIP"), ("LAS", "IPR")):
        file = nifti(f"{codes}.nii.gz", image, codes)
        for blend in ("gaussian", "crop"):
            yield case(f"frame {codes} {frame} {blend}", file, net, frame=frame, blend=blend)
        more = {"frame": frame, "normalize": "zscore", "flips": "yx", "patch": (4, 8, 6)}
        yield case(f"frame {codes} {frame} flips zscore", file, net, **more)
        yield case(f"frame {codes} {frame} half", file, half_net(), frame=frame)
    slices = {"patch": (1, 8, 8), "frame": "SAR"}
    yield case("frame slices", nifti("LPS.nii.gz", image), conv_net(dims=2), **slices)

    def to_file(name: str, **options: Any) -> Path:
        predicted(nifti("LPS.nii.gz", image), net, name, output="classes", **options)
        return Path(name)

    yield "predict/to nii.gz", lambda: to_file("classes.nii.gz", frame="RAS")
    yield "predict/to npy", lambda: to_file("classes.npy")

    def from_bundle() -> Any:
        vf.save_model(
            conv_net(2), "bundle", patch=8, overlap=0.5, blend="hann", normalize="zscore",
            channels=("t1", "flair"), classes=("background", "lesion"), output="classes",
            architecture="bits_inputs:conv_net", arguments={"channels": 2},
        )  # fmt: skip
        return predicted({"flair": scan(seed=2), "t1": scan()}, "bundle", patch=None, trust=True)

    yield "predict/bundle", from_bundle


def exact() -> Cases:
    volume = stored("scan.zarr", scan())

    def case(name: str, model: Any, given: Any = volume, **options: Any) -> Any:
        return f"exact/{name}", lambda: exactly(given, model, **options)

    for norm in ("none", "batch", "instance", "group"):
        yield case(norm, encoder(norm))
    yield case("gate", Pooled().eval())
    yield case("classes softmax", encoder("instance"), output="classes", activation="softmax")
    yield case("uint8 levels", encoder("batch"), dtype="uint8", activation=halved, levels=True)
    yield case("half the resolution", half_net())
    yield case("two outputs", Two(conv_net(), encoder("instance"), named=True).eval())
    yield case("flips zscore", encoder("instance"), flips="zx", normalize="zscore")
    yield case("slices", encoder("instance", dims=2), patch=(1, 2, 2))
    yield case("two channels", encoder("group", 2), {"a": scan(), "b": scan(seed=2)})
    yield case("small volume", encoder("instance"), scan((3, 5, 6)))
    values = columns()
    oriented = nifti("PIR.nii.gz", values, "PIR")
    yield case("frame", encoder("instance"), oriented, frame="RAS", normalize="minmax")

    def in_passes(model: nn.Module, **options: Any) -> Any:
        """In float64, rounded: where its blocks lie follows from measured times."""
        found = exactly(scan().astype("float64"), model.double(), **(SMALL | options))
        assert vf.verify(found.path).ok
        return rounded(found[:])

    for norm in ("none", "instance", "group"):
        yield f"exact/~in passes {norm}", lambda n=norm: in_passes(encoder(n))
    yield "exact/~in passes gate", lambda: in_passes(Pooled().eval())
    yield "exact/~in passes flips", lambda: in_passes(encoder("instance"), flips="y")
    half = {"activation": "softmax"}
    yield "exact/~in passes half", lambda: in_passes(half_net(), **half)
    for norm in ("none", "instance"):
        found = encoder(norm)
        yield f"halo/{norm}", lambda f=found: str(vf.halo(f, shape=SHAPE))


def lazy() -> Cases:
    volume = stored("scan.zarr", scan())
    net, patches = conv_net(), {"patch": 8, "batch_size": 2, "block": 8}

    def case(name: str, given: Any = volume, model: Any = net, **options: Any) -> Any:
        return f"map_model/{name}", lambda: vf.map_model(given, model, **(patches | options))

    for blend in ("crop", "average", "gaussian", "hann"):
        yield case(blend, blend=blend)
    yield case("region", block=None)
    more = {"output": "classes", "activation": "softmax", "normalize": "zscore", "flips": "z"}
    yield case("classes zscore flips", **more)
    yield case("half", model=half_net())
    yield case("skip", skip_below=0.3, mask=stored("mask.zarr", labels()))
    yield case("slices", model=conv_net(dims=2), patch=(1, 8, 8))
    computed = da.from_array(scan(), chunks=(10, 19, 9)) + 1
    yield case("computed", computed, block=None)
    yield case("computed crop", computed, block=None, blend="crop", normalize=halved)
    exact = {"blend": "exact", "patch": None}
    for norm in ("none", "batch", "instance"):
        yield case(f"exact {norm}", model=encoder(norm), **exact)
    values = columns()
    file = nifti("PIR.nii", values, "PIR")
    yield case("frame", file, frame="RAS")
    oriented = stored("oriented.zarr", file)
    yield case("exact frame", oriented, encoder("instance"), frame="RAS", **exact)
    yield "map_model/part", lambda: vf.map_model(volume, net, **patches)[:, 3:9, :5, 11:].compute()

    def spread(block: Any, weight: float = 1.0) -> Any:
        """A stencil that sees three voxels on each side of each axis."""
        found = block.astype("float32")
        for axis in range(-3, 0):
            found = found + weight * (np.roll(found, 3, axis) - np.roll(found, -2, axis))
        return found

    def overlap(name: str, *given: Any, func: Any = spread, **options: Any) -> Any:
        options = {"dtype": "f4", "depth": 3, "boundary": "reflect", "block": 8} | options
        return f"map_overlap/{name}", lambda: vf.map_overlap(func, *given, **options)

    for boundary in ("reflect", "periodic", "nearest", 0, "none"):
        yield overlap(f"{boundary}", volume, boundary=boundary)
    yield overlap("per axis", volume, depth={0: 1, 1: 3, 2: 0}, boundary={0: "nearest", 1: 5})
    yield overlap("one side", volume, depth=((2, 0), (0, 3), (1, 1)), boundary="none")
    yield overlap("keywords", volume, weight=0.5)
    yield overlap("channels", stored("two.zarr", scan((2, *SHAPE))), block=(1, 8, 8, 8))
    yield overlap("not trimmed", volume, trim=False, boundary="nearest")
    other = stored("other.zarr", scan(seed=3))
    yield overlap("two sources", volume, other, func=lambda a, b: spread(a) * b)
    yield overlap("new axis", volume, func=lambda b: spread(b)[None], new_axis=0, chunks=None)
    plain = {"block": None, "allow_rechunk": True}
    yield overlap("computed", da.from_array(scan(), chunks=8) * 2, **plain)
    yield overlap(
        "computed periodic", da.from_array(scan(), chunks=8), boundary="periodic", **plain
    )
