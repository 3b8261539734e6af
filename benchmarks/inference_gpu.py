"""Inference on a GPU: a U-Net of nnU-Net's size over a CT-sized volume, bf16, beside its peers.

    python benchmarks/inference_gpu.py                      # 1069 x 512 x 512, patch 128
    python benchmarks/inference_gpu.py --shape 256 256 256 --repeats 1

Bare forward runs the same patches from memory, without blending or writing; MONAI runs
``sliding_window_inference`` with its sums on the GPU and writes the result; volflow reads, blends,
writes and journals. The share of time that the GPU is busy is nvidia-smi's, sampled five times a
second. Where there is no GPU it says so and exits with 2.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from inference import make_scan, status  # noqa: E402
from machine import describe, file_result  # noqa: E402

METHODS = ("forward", "monai", "volflow")
OVERLAP = 0.5


def make_net():
    import torch

    from volflow.model.unet import UNet

    torch.manual_seed(0)
    return UNet(1, 3, features=(32, 64, 128, 256, 320, 320), norm="instance").eval()


class Utilization:
    """Samples of how busy the GPU is."""

    def __init__(self) -> None:
        self.samples: list[int] = []
        self.process = subprocess.Popen(
            ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200"],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.thread = threading.Thread(target=self.read, daemon=True)
        self.thread.start()

    def read(self) -> None:
        for line in self.process.stdout or ():
            if line.strip().isdigit():
                self.samples.append(int(line))

    def share(self) -> float:
        self.process.terminate()
        self.thread.join()
        return statistics.mean(self.samples) / 100 if self.samples else float("nan")


def run_forward(scan: str, out: str, net, patch: int, batch: int) -> None:
    import torch
    import zarr

    from volflow.geometry.grid import PatchGrid, stride_of

    image = torch.from_numpy(zarr.open_array(f"{scan}/0")[:].astype("float32"))[None]
    sides = (patch,) * 3
    rois = list(PatchGrid(tuple(image.shape[1:]), sides, stride_of(sides, OVERLAP)))
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
        for first in range(0, len(rois), batch):
            part = [image[(slice(None), *roi.slices())] for roi in rois[first : first + batch]]
            net(torch.stack(part).cuda().contiguous(memory_format=torch.channels_last_3d))
    torch.cuda.synchronize()


def run_monai(scan: str, out: str, net, patch: int, batch: int) -> None:
    import torch
    import zarr
    from monai.inferers import sliding_window_inference

    image = torch.from_numpy(zarr.open_array(f"{scan}/0")[:].astype("float32"))[None, None]
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
        scores = sliding_window_inference(
            image, (patch,) * 3, batch, net, overlap=OVERLAP, mode="gaussian",
            sw_device="cuda", device="cuda",
        )  # fmt: skip
    classes = scores[0].argmax(0).to(torch.uint8).cpu().numpy()
    target = zarr.create_array(
        out, shape=classes.shape, dtype="uint8", chunks=(64,) * 3, shards=(256,) * 3,
        compressors=zarr.codecs.ZstdCodec(level=1), overwrite=True,
    )  # fmt: skip
    target[:] = classes


def run_volflow(scan: str, out: str, net, patch: int, batch: int) -> None:
    import volflow as vf

    vf.predict(
        scan, net, out, patch=patch, overlap=OVERLAP, output="classes", batch_size=batch,
        device="cuda", overwrite=True, progress=False,
    )  # fmt: skip


def child(method: str, scan: str, out: str, patch: int, batch: int) -> None:
    import torch

    if method == "volflow":
        from volflow.infer.predict import predict  # noqa: F401
    net = make_net()
    on_gpu = net.cuda().to(memory_format=torch.channels_last_3d)
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
        for _ in range(3):
            on_gpu(torch.zeros(batch, 1, patch, patch, patch, device="cuda"))
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    Path("/proc/self/clear_refs").write_text("5")
    resident = status("VmRSS")
    busy = Utilization()
    began = time.perf_counter()
    globals()[f"run_{method}"](scan, out, on_gpu, patch, batch)
    wall = time.perf_counter() - began
    figures = {
        "wall_s": wall,
        "busy": busy.share(),
        "gpu_gib": torch.cuda.max_memory_allocated() / 2**30,
        "growth_gib": (status("VmHWM") - resident) / 2**30,
    }
    print(json.dumps(figures))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--shape", nargs=3, type=int, default=[1069, 512, 512])
    parser.add_argument("--patch", type=int, default=128)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", help="folder for the result instead of benchmarks/results")
    options = parser.parse_args()
    if options.child:
        child(*options.child, options.patch, options.batch)
        return
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("no GPU here: benchmarks/inference_gpu.py was not run")
    runs: dict[str, list[dict[str, float]]] = {m: [] for m in METHODS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_scan(folder / "scan.zarr", tuple(options.shape))
        for repeat in range(options.repeats):
            for method in METHODS:
                out = folder / f"{method}.zarr"
                for path in (out, Path(f"{out}.volflow")):
                    shutil.rmtree(path, ignore_errors=True)
                command = [
                    sys.executable, __file__, "--child", method, str(folder / "scan.zarr"), str(out),
                    "--patch", str(options.patch), "--batch", str(options.batch),
                ]  # fmt: skip
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise SystemExit(f"{method} failed: {done.stderr[-2000:]}")
                runs[method].append(json.loads(done.stdout.splitlines()[-1]))
                print(repeat, method, runs[method][-1], file=sys.stderr)
    gpu = torch.cuda.get_device_name()
    lines = [
        describe(["torch", "zarr", "dask", "monai"]) + f" · {gpu}",
        "",
        f"### {' x '.join(map(str, options.shape))}, patch {options.patch}, overlap {OVERLAP},"
        f" bf16, batches of {options.batch}, 3 classes, median of {options.repeats}",
        "",
        "| method | wall s | wall / bare forward | GPU busy | GPU memory GiB | RSS growth GiB |",
        "|---|---|---|---|---|---|",
    ]
    middle = {m: {k: statistics.median(r[k] for r in rs) for k in rs[0]} for m, rs in runs.items()}
    for method in METHODS:
        row = middle[method]
        lines.append(
            f"| {method} | {row['wall_s']:.1f} | {row['wall_s'] / middle['forward']['wall_s']:.2f} |"
            f" {row['busy']:.0%} | {row['gpu_gib']:.1f} | {row['growth_gib']:.2f} |"
        )
    text = "\n".join(lines)
    print(text)
    if options.out:
        (Path(options.out) / "inference_gpu.md").write_text(f"# inference_gpu\n\n{text}\n")
    else:
        file_result("inference_gpu", text)


if __name__ == "__main__":
    main()
