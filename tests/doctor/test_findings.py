"""What the doctor says of a machine: names and sizes, and of credentials only that they are there."""

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from saecache.common.versions import package_version
from saecache.doctor.findings import devices, machine, storage
from saecache.doctor.notes import Notes

CPU = torch.device("cpu")


@pytest.fixture
def notes() -> Notes:
    return Notes(name="section", title="")


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty home, and none of the variables that name places or credentials."""
    for variables in ("SAECACHE_BACKEND", "SAECACHE_CACHE_DIR", "XDG_CACHE_HOME", "HF_HOME", "HF_TOKEN"):
        monkeypatch.delenv(variables, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def found(notes: Notes) -> dict[str, str]:
    return {finding.name: finding.value for finding in notes.findings}


def test_the_machine(notes: Notes) -> None:
    machine.describe_machine(notes)
    facts = found(notes)
    assert facts["torch"] == package_version("torch")
    assert facts["processor"]
    assert "of" in facts["cores"]
    assert "available" in facts["memory"]


def test_instructions_are_named_as_people_know_them(notes: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"model name": "a CPU", "flags": "fpu avx2 amx_bf16 avx512f", "cpu family": "6", "model": "143"}
    monkeypatch.setattr(machine, "cpu_facts", lambda: facts)
    machine.describe_machine(notes)
    assert found(notes)["instructions"] == "AVX2, AVX-512, AMX BF16"
    assert found(notes)["processor"] == "a CPU (family 6, model 143)"


def test_the_choice_of_a_backend_is_explained(monkeypatch: pytest.MonkeyPatch, broken_backend: str) -> None:
    assert devices.explain_choice(CPU).startswith(
        "broken (the first by preference of those that serve the device: broken 99, compiled 10, plain 0"
    )
    monkeypatch.setenv("SAECACHE_BACKEND", "plain")
    assert devices.explain_choice(CPU) == "plain (SAECACHE_BACKEND names it)"
    monkeypatch.setenv("SAECACHE_BACKEND", "")
    assert devices.explain_choice(CPU).startswith("broken (the first by preference")


def test_a_backend_that_cannot_be_imported_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ImportError("no module named numba")

    monkeypatch.setattr(devices, "load_backend", fail)
    assert "CANNOT BE LOADED: ImportError: no module named numba" in devices.explain_choice(CPU)


def test_a_gpu_is_described(notes: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = SimpleNamespace(major=9, minor=0, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: facts)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (60 << 30, 80 << 30))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    told = devices.describe_device(torch.device("cuda:0"))
    assert told == "NVIDIA H100, sm_90, 132 multiprocessors, 60 GiB of 80 GiB free"


def test_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "DRIVER_VERSION", tmp_path / "version")
    monkeypatch.setattr(subprocess, "run", lambda *a, **o: SimpleNamespace(stdout="580.159\n"))
    assert devices.driver_version() == "580.159"
    (tmp_path / "version").write_text("570.1\n")
    assert devices.driver_version() == "570.1"


def test_credentials_are_named_and_never_shown(notes: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = Path.home() / ".config" / "gcloud" / "application_default_credentials.json"
    secret.parent.mkdir(parents=True)
    secret.write_text("a secret")
    for name in ("AWS_PROFILE", "AZURE_STORAGE_ACCOUNT_KEY", "HUGGING_FACE_HUB_TOKEN", "SAECACHE_TEAM"):
        monkeypatch.setenv(name, "a secret")
    Path("temporary").mkdir()
    storage.describe_storage(notes, Path(), Path("temporary"))
    facts = found(notes)
    assert facts["credentials for S3"] == "AWS_PROFILE"
    assert facts["credentials for Google Cloud"] == "~/.config/gcloud/application_default_credentials.json"
    assert facts["credentials for Azure"] == "AZURE_STORAGE_ACCOUNT_KEY"
    assert facts["credentials for Hugging Face"] == "HUGGING_FACE_HUB_TOKEN"
    assert "secret" not in "".join(facts.values())
    assert facts["download cache"].startswith("~/.cache/saecache (SAECACHE_CACHE_DIR): not there")
    assert not Path.home().joinpath(".cache").exists(), "looking makes nothing"
    assert notes.figures[0].name == "write until durable"
    assert list(Path("temporary").iterdir()) == []


def test_sizes_of_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    (Path("caches") / "a").mkdir(parents=True)
    (Path("caches") / "a" / "one").write_bytes(bytes(1000))
    (Path("caches") / "two").write_bytes(bytes(1048))
    assert storage.describe_size(Path("caches")) == "2 files, 2 KiB"
    monkeypatch.setattr(storage, "MOST_FILES", 1)
    assert storage.describe_size(Path("caches")).startswith("more than 1 files")
    assert storage.describe_size(Path("nowhere")) == "not there"


def test_a_full_disk_is_not_measured(notes: Notes) -> None:
    storage.measure_disk(notes, Path("speed"), 1000)
    assert notes.left_out[0].why == "it is nearly full"
    assert not Path("speed").exists()
