"""launch/doctor.py: every finding by its fault."""

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from data_prep.cli import ROOT, InputError
from launch import doctor
from launch.cluster import Hosts
from launch.doctor import Answer, DoctorConfig, Finding, differences, facts, look_between, look_here
from tests.stores import random_documents, store_of


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture
def folder(tmp_path) -> Path:
    store_of(tmp_path / "store", random_documents(5))
    return tmp_path


def found(config: DoctorConfig) -> dict[str, Finding]:
    return {finding.check: finding for finding in look_here(config)}


def test_a_machine_that_is_looked_at_stays_as_it_was(folder):
    words = [
        sys.executable,
        ROOT / "launch/doctor.py",
        "--data",
        folder / "store",
        "--out",
        folder / "not/yet",
        "--json",
    ]
    result = subprocess.run(words, capture_output=True, text=True, cwd=folder)
    said = json.loads(result.stdout)
    bad = [finding for finding in said["findings"] if not finding["ok"]]
    assert said["ok"] == (result.returncode == 0) == (not bad)
    assert all(set(finding) == {"check", "ok", "what", "remedy"} for finding in said["findings"])
    checks = {finding["check"] for finding in said["findings"]}
    assert {"packages", "device", "shared memory", "port", "open files", "inodes", "store"} <= checks
    assert [path.name for path in folder.iterdir()] == ["store"]


def test_each_fault_is_found_and_has_a_remedy(folder, monkeypatch):
    other: dict[str, Any] = {"torch": "1.0"}
    monkeypatch.setattr(doctor, "version", lambda name: other.get(name, "0.19.8+cpu"))
    builds = folder / "extensions/py311/cpu_adam"
    builds.mkdir(parents=True)
    (builds / "lock").touch()
    os.utime(builds / "lock", (0, 0))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(folder / "extensions"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 26, 0, 1 << 26))
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1024, 1024))
    monkeypatch.setattr(os, "statvfs", lambda path: type("", (), {"f_files": 100, "f_favail": 3}))
    monkeypatch.setattr(doctor, "write_speed", lambda path: 1e6)

    def no_interface(towards: str) -> str:
        raise InputError("the name node1 leads to 127.0.1.1")

    monkeypatch.setattr(doctor, "interface_instead_of_loopback", no_interface)
    with socket.socket() as holder:
        holder.bind(("", 0))
        holder.listen()
        monkeypatch.setenv("MASTER_PORT", str(holder.getsockname()[1]))
        faults = found(DoctorConfig(data=(folder / "nowhere",), out=folder / "run"))
    bad = {check: finding for check, finding in faults.items() if not finding.ok}
    assert set(faults) - set(bad) == {"device"}
    assert all(finding.remedy for finding in bad.values())
    assert "torch is 1.0, tested is" in bad["packages"].what
    assert "cpu_adam/lock" in bad["locks of builds"].remedy
    assert "--shm-size" in bad["shared memory"].remedy
    assert "Address already in use" in bad["port"].what
    assert "127.0.1.1" in bad["name"].what
    assert "nowhere" in bad["store"].what
    assert "at most 1024" in bad["open files"].what


@pytest.mark.parametrize("number", ["abc", "99999", "-1"])
def test_a_port_that_is_none_is_a_finding(monkeypatch, number):
    monkeypatch.setenv("MASTER_PORT", number)
    finding = doctor.port()
    assert (finding.ok, finding.what.startswith(f"MASTER_PORT={number!r} is no whole number")) == (False, True)


def test_a_disk_that_is_full_or_not_ours(folder, monkeypatch):
    def is_full(path: Path) -> float:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(doctor, "write_speed", is_full)
    assert "No space left" in found(DoctorConfig(out=folder / "run"))["write speed"].what
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "cannot be written to" in found(DoctorConfig(out=folder / "run"))["disk"].what


def test_a_gpu_without_a_driver_or_with_a_torch_for_cpus(folder, monkeypatch):
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter([Path("/dev/nvidia0")]))
    path = os.environ["PATH"]
    monkeypatch.setenv("PATH", str(folder))
    assert "nvidia-smi fails" in doctor.device().what
    monkeypatch.setenv("PATH", f"{folder}:{path}")
    smi = folder / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    smi.chmod(0o755)
    assert doctor.device()[1:3] == (False, "nvidia-smi: NVIDIA-SMI has failed")
    smi.write_text("#!/bin/sh\necho 'NVIDIA H100, 570.1'\n")
    monkeypatch.setattr(doctor, "version", lambda name: "2.13.0+cpu")
    assert not doctor.device().ok
    monkeypatch.setattr(doctor, "version", lambda name: "2.13.0+cu130")
    assert doctor.device()[1:3] == (True, "1 x NVIDIA H100, 570.1; torch 2.13.0+cu130")


@pytest.fixture
def ssh(tmp_path_factory, monkeypatch) -> Path:
    """An ssh that runs here what it is asked; before, for node2, what the file `fault` says."""
    folder = tmp_path_factory.mktemp("ssh")
    script = folder / "ssh"
    script.write_text(
        "#!/bin/bash\nwhile [[ $1 == -* ]]; do shift 2; done\nhost=$1; shift\n"
        f'[[ $host != node2 ]] || source {folder}/fault\nexec bash -c "$*"\n'
    )
    script.chmod(0o755)
    (folder / "fault").touch()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def between(config: DoctorConfig, monkeypatch: Any) -> list[Finding]:
    monkeypatch.setattr(doctor, "all_reduce", lambda hosts: Finding("all_reduce", True, "quick"))
    return list(look_between(config, Hosts(Path("hosts"), ["node1", "node2"])))


def test_hosts_are_asked_and_compared(folder, ssh, monkeypatch):
    config = DoctorConfig(data=(folder / "store",), out=folder / "run")
    well = between(config, monkeypatch)
    assert [finding.ok for finding in well if finding.check in ("ssh", "alike")] == [True, True]
    assert not [finding for finding in well if finding.check == "doctor"]  # each host has answered
    assert any(finding.what.startswith("node2: ") for finding in well)
    assert [path.name for path in folder.iterdir()] == ["store"]

    (ssh / "fault").write_text("echo Welcome to node2\n")  # by its .bashrc
    unwritable = between(DoctorConfig(out=Path("/proc/nowhere")), monkeypatch)  # nobody can make a file there
    bad = {finding.check for finding in unwritable if not finding.ok}
    assert ({"disk", "alike"} <= bad, "doctor" in bad) == (True, False)

    (ssh / "fault").write_text("echo Permission denied >&2; exit 255\n")
    refused = between(config, monkeypatch)
    assert [finding.ok for finding in refused] == [False]
    assert "node2: Permission denied" in refused[0].what


def test_what_differs_is_told_by_host(folder):
    config = DoctorConfig(data=(folder / "store",), out=folder / "run")
    mine = facts(config, "not-there")
    assert mine[f"--out {folder / 'run'}"] == "another folder"
    there = mine | {"code": "0000", f"--out {folder / 'run'}": "shared"}
    told = "; ".join(finding.what for finding in differences([Answer("node1", [], mine), Answer("node2", [], there)]))
    assert f"code is {mine['code']} on node1, 0000 on node2" in told
    assert "another folder on node1, shared on node2" in told
    assert not any(finding.ok for finding in differences([Answer("node1", [], mine)]))
    assert not list(differences([Answer("node1", [], {})]))  # of one that has not answered nothing is known


@pytest.mark.slow
def test_hosts_reduce_together(ssh, monkeypatch):
    hosts = Hosts(Path("hosts"), ["node1", "node2"])
    assert "MB/s over 2 hosts" in doctor.all_reduce(hosts).what
