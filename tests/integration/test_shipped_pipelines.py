"""What lies ready to copy under pipelines/: run here on a real scan, as far as it can run here.

Kubernetes and SLURM are not at hand: of the job's manifest the structure is checked and its command
run; SLURM's scripts run as SLURM would run them, with its signal and its variables, and a scontrol
that only notes how it was called.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from nibabel.nifti1 import Nifti1Image

import volflow as vf

STEPS = ["scan", "range", "segment", "levels", "check", "file", "picture"]


@pytest.fixture(scope="module")
def crop(shared_data):
    """Cuts a box out of a real T1 scan, as NIfTI."""
    name = "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
    scan = Nifti1Image.from_filename(shared_data("mni152") / name)

    def cut(path, side):
        part = scan.slicer[60 : 60 + side, 60 : 60 + side, 60 : 60 + side]
        part.to_filename(path)
        return path

    return cut


@pytest.fixture
def shipped(root, monkeypatch):
    """Their folder; Python and volflow are this environment's, and found first."""
    monkeypatch.setenv("PYTHONPATH", str(root))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return root / "pipelines"


@pytest.fixture(scope="module")
def night(tmp_path_factory, root, crop):
    """A folder as the crontab and the service expect it: pipeline, scan, a place for results."""
    folder = tmp_path_factory.mktemp("night")
    text = (root / "pipelines" / "segment.yaml").read_text()
    text = text.replace("volflow/demo/bundle", str(vf.demo.BUNDLE)).replace(
        "shard: 128", "shard: 64"
    )
    (folder / "segment.yaml").write_text(text)
    (folder / "results").mkdir()
    crop(folder / "scan.nii.gz", 66)
    return folder


def events(record):
    if not record.exists():
        return []
    return [json.loads(line) for line in record.read_text().splitlines()]


def outcomes(record):
    """How the steps of the last run ended."""
    found = events(record)
    last = max(n for n, one in enumerate(found) if one["event"] == "run")
    return {one["step"]: one["outcome"] for one in found[last:] if one["event"] == "end"}


def shell(line, folder, **more):
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, check=False, capture_output=True, text=True,
        env={**os.environ, **more},
    )  # fmt: skip


class TestEveryNight:
    """In this order: the first runs all, the others find it done."""

    def test_the_line_of_the_crontab(self, shipped, night):
        (line,) = [one for one in (shipped / "crontab").read_text().splitlines() if one[:1] == "0"]
        command = line.split(maxsplit=5)[5].replace("/data/night", str(night))
        done = shell(command, night)
        assert done.returncode == 0, (night / "night.log").read_text()
        assert list(outcomes(night / "results" / "p01_run.jsonl")) == STEPS
        want = vf.predict(
            night / "results" / "p01_scan.zarr", str(vf.demo.BUNDLE), night / "want.zarr",
            output="classes", progress=False,
        )  # fmt: skip
        classes = np.asarray(
            Nifti1Image.from_filename(night / "results" / "p01_seg.nii.gz").dataobj
        )
        stored = vf.open(night / "results" / "p01_seg.zarr")
        assert np.array_equal(stored[:], want[:])
        assert np.array_equal(classes.transpose(2, 1, 0), want[:])
        assert len(np.unique(classes)) == 3
        assert len(stored.levels) > 1
        assert (night / "results" / "p01_seg.png").stat().st_size > 10_000

    def test_the_service(self, shipped, night):
        text = (shipped / "volflow-night.service").read_text()
        (line,) = re.findall(r"^ExecStart=(.*)$", text, re.M)
        done = shell(line, night)
        assert done.returncode == 0, done.stderr
        assert set(outcomes(night / "results" / "p01_run.jsonl").values()) == {"skipped"}

    def test_units_are_what_systemd_takes(self, shipped):
        if shutil.which("systemd-analyze") is None:
            pytest.skip("systemd is not at hand")
        units = [str(shipped / f"volflow-night.{kind}") for kind in ("service", "timer")]
        done = subprocess.run(
            ["systemd-analyze", "verify", *units], check=False, capture_output=True, text=True
        )
        told = [line for line in done.stderr.splitlines() if "volflow-night" in line]
        assert (done.returncode, told) == (0, [])

    def test_the_command_of_the_kubernetes_job(self, shipped, night):
        """Its schema is no part of what can be installed here: the parts that it must have are."""
        job = yaml.safe_load((shipped / "kubernetes_job.yaml").read_text())
        assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
        pod = job["spec"]["template"]["spec"]
        assert pod["restartPolicy"] == "Never"  # which podFailurePolicy demands
        (container,) = pod["containers"]
        for rule in job["spec"]["podFailurePolicy"]["rules"]:
            assert rule["action"] in ("FailJob", "Ignore", "Count")
            assert rule.get("onExitCodes", {}).get("containerName", container["name"]) == "volflow"
        mounted = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
        assert mounted.keys() == {one["name"] for one in pod["volumes"]}
        words = [*container["command"], *container["args"]]
        places = {"/pipeline": str(night), "/data/p01": f"{night}/results/p01"}
        places |= {"/data/my_bundle": str(vf.demo.BUNDLE), "/data": str(night)}
        for place, here in places.items():
            words = [re.sub(rf"(^|=){place}(?=/|$)", rf"\1{here}", word) for word in words]
        done = shell(shlex.join(words), Path("/"))
        assert done.returncode == 0, done.stderr
        # Paths are others now, and what they name is the same: it is found done.
        assert outcomes(night / "results" / "p01_run.jsonl")["segment"] == "done"

    def test_every_script_can_be_read_by_its_shell(self, shipped):
        scripts = sorted(shipped.glob("*.sh"))
        assert len(scripts) == 3
        for script in scripts:
            assert os.access(script, os.X_OK)
            subprocess.run(["bash", "-n", str(script)], check=True)
            if shutil.which("shellcheck"):
                subprocess.run(["shellcheck", str(script)], check=True)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A scontrol that notes how it was called; returns what it noted."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    (folder / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {folder}/called\n')
    (folder / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return lambda: (folder / "called").read_text() if (folder / "called").exists() else ""


class TestSlurm:
    @pytest.mark.slow
    def test_a_walltime_queues_the_job_again_which_goes_on(
        self, shipped, night, crop, slurm, tmp_path
    ):
        crop(tmp_path / "scan.nii.gz", 130)
        words = ["bash", str(shipped / "slurm_batch.sh"), str(night / "segment.yaml")]
        words += ["--set", "input=scan.nii.gz", "--set", "output=p02"]
        environment = {**os.environ, "SLURM_JOB_ID": "7"}
        done = tmp_path / "p02_seg.zarr.volflow" / "done"
        job = subprocess.Popen(
            words, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
        )
        while job.poll() is None and not (done.is_dir() and any(done.iterdir())):
            time.sleep(0.05)
        job.send_signal(signal.SIGTERM)  # to the shell alone, as B:TERM does
        _, told = job.communicate(timeout=60)
        assert job.returncode == 1, told
        assert slurm() == "requeue 7\n"
        assert outcomes(tmp_path / "p02_run.jsonl")["segment"] == "stopped"
        kept = {path: path.stat().st_mtime_ns for path in done.glob("*.json")}
        assert kept

        again = subprocess.run(
            words, cwd=tmp_path, env=environment, check=False, capture_output=True, text=True
        )
        assert again.returncode == 0, again.stderr
        assert slurm() == "requeue 7\n"
        found = outcomes(tmp_path / "p02_run.jsonl")
        assert [found[name] for name in STEPS] == ["skipped"] * 2 + ["done"] * 5
        assert kept == {path: path.stat().st_mtime_ns for path in kept}
        want = vf.predict(
            tmp_path / "p02_scan.zarr", str(vf.demo.BUNDLE), tmp_path / "want.zarr",
            output="classes", progress=False,
        )  # fmt: skip
        assert np.array_equal(vf.open(tmp_path / "p02_seg.zarr")[:], want[:])

    @pytest.mark.slow
    def test_a_job_of_an_array_takes_its_own_scan(self, shipped, night, slurm, tmp_path):
        shutil.copy(night / "scan.nii.gz", tmp_path / "b.nii.gz")
        (tmp_path / "scans.txt").write_text("a.nii.gz\nb.nii.gz\n")
        script = shlex.quote(str(shipped / "slurm_array.sh"))
        line = f"{script} {night}/segment.yaml scans.txt {tmp_path}"
        done = shell(line, tmp_path, SLURM_ARRAY_TASK_ID="2", SLURM_ARRAY_JOB_ID="9")
        assert done.returncode == 0, done.stderr
        assert list(outcomes(tmp_path / "b_run.jsonl").values()) == ["done"] * 7
        assert shell(line, tmp_path, SLURM_ARRAY_TASK_ID="3").returncode == 2
        assert shell(line, tmp_path, SLURM_ARRAY_TASK_ID="1").returncode == 2  # a is not there
        assert slurm() == ""


@pytest.mark.slow
def test_a_scheduler_and_its_workers_run_the_pipeline(shipped, night, tmp_path):
    """They are really started, on loopback, and end with the command."""
    script = shlex.quote(str(shipped / "dask_scheduler_workers.sh"))
    line = f"{script} volflow run {night}/segment.yaml --set input={night}/scan.nii.gz"
    line += f" --set output={tmp_path}/p03 --memory 1GiB"
    done = shell(line, tmp_path, WORKERS="2")
    assert done.returncode == 0, done.stderr
    assert list(outcomes(tmp_path / "p03_run.jsonl").values()) == ["done"] * 7
    addresses = re.findall(r"tcp://([0-9.]+):\d+", done.stderr)
    assert set(addresses) == {"127.0.0.1"}
    one, other = (
        vf.open(f"{folder}_seg.zarr")[:] for folder in (tmp_path / "p03", night / "results/p01")
    )
    assert np.array_equal(one, other)
    assert "Traceback" not in done.stderr
