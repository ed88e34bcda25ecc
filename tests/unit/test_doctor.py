"""`doctor` sees what is there, and what is wrong with it, and says how to mend it."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from stillhouse import doctor
from stillhouse.terminal import doctor_text


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    """Of the real environment."""
    return doctor.examine()


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """Versions that differ from the real ones; None for a package that is not installed."""
    real, other = metadata.version, {}

    def found(name: str) -> str:
        version = other.get(name, "real")
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return real(name) if version == "real" else version

    monkeypatch.setattr(metadata, "version", found)
    return other


def installed(folder: Path, name: str, version: str, code: str = "", *needs: str) -> None:
    """A real distribution with one module, in a folder that is on the path."""
    (folder / f"{name}.py").write_text(code)
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {n}" for n in needs)]
    (info / "METADATA").write_text("\n".join(lines) + "\n")


def test_a_sound_environment_has_no_problem(facts: dict[str, Any]) -> None:
    assert facts["problems"] == []
    assert all(package["works"] for package in facts["packages"].values())
    assert {"torch", "transformers", "datasets"} <= set(facts["packages"])
    json.dumps(facts)


def test_every_extra_but_development_has_a_purpose_and_its_packages(facts: dict[str, Any]) -> None:
    declared = set(metadata.metadata("stillhouse").get_all("Provides-Extra") or []) - {"dev", "docs"}
    assert declared == set(facts["extras"])
    for extra, found in facts["extras"].items():
        assert found["for"]
        assert found["install"] == f'pip install "stillhouse[{extra}]"'
        assert found["packages"]


def test_what_a_run_would_choose_is_said_with_measured_speeds(facts: dict[str, Any]) -> None:
    text = doctor_text(facts)
    assert facts["device"] in {"cpu", "cuda"}
    assert all(speed > 1e6 for speed in facts["operations_per_second"].values())
    assert f"{facts['operations_per_second']['float32'] / 1e9:,.0f} GFLOP/s" in text
    assert "times its own student" in text
    assert "No problem found." in text
    assert 0 < facts["usable_cores"] <= facts["cores"]
    assert 0 < facts["available_memory_bytes"] <= facts["memory_bytes"]


def test_a_missing_package_is_a_problem_and_a_missing_extra_is_not(versions: dict[str, str | None]) -> None:
    versions |= {"pyarrow": None, "trackio": None}
    facts = doctor.examine()
    assert facts["problems"] == ['pyarrow is not installed: pip install "pyarrow>=20"']
    text = doctor_text(facts)
    assert 'trackio not installed: pip install "stillhouse[track]", for curves' in text
    assert "PROBLEM" in text
    assert "pyarrow MISSING" in text


def test_without_torch_the_rest_is_told(versions: dict[str, str | None]) -> None:
    versions["torch"] = None
    facts = doctor.examine()
    assert facts["problems"] == ['torch is not installed: pip install "torch>=2.6"']
    assert "torch MISSING" in doctor_text(facts)
    assert "GFLOP/s" not in doctor_text(facts)


@pytest.mark.parametrize(
    ("package", "version", "wanted"),
    [("transformers", "4.57.6", "<6,>=5.16"), ("numpy", "3.0.0", "<3,>=2"), ("lm-eval", "0.3.0", "<0.5,>=0.4.13")],
)
def test_a_version_outside_the_range_is_a_problem(
    package: str, version: str, wanted: str, versions: dict[str, str | None]
) -> None:
    versions[package] = version
    problems = list(doctor._unmet(["stillhouse"]))
    assert problems == [
        f'stillhouse 0.1.0 needs {package}{wanted}, {version} is installed: pip install "{package}{wanted}"'
    ]


def test_a_local_build_and_a_release_candidate_are_within_the_range(versions: dict[str, str | None]) -> None:
    versions |= {"torch": "2.13.0+cu130", "transformers": "5.24.0rc1"}
    assert list(doctor._unmet(["stillhouse"])) == []


def test_a_broken_installation_is_a_problem_with_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    installed(
        tmp_path, "brokenkit", "1.0", "print('hello')\nraise OSError('libcudart.so.13: cannot open shared object')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = doctor._package(doctor.Requirement("brokenkit>=1"))
    assert not found["works"]
    (problem,) = doctor._broken({"brokenkit": found})
    assert "brokenkit 1.0 is installed but cannot be imported (OSError: libcudart.so.13" in problem
    assert 'pip install --force-reinstall --no-deps "brokenkit==1.0"' in problem
    assert capfd.readouterr().out == ""


def test_a_torchvision_for_another_torch_is_a_problem_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "raise RuntimeError('operator torchvision::nms does not exist')"
    installed(tmp_path, "torchvision", "0.20.0", code, "numpy", "torch (==2.5.0)")
    monkeypatch.syspath_prepend(tmp_path)
    mismatch, broken = doctor.examine()["problems"]
    assert "torchvision 0.20.0 needs torch==2.5.0" in mismatch
    assert "operator torchvision::nms does not exist" in broken
    assert all("pip uninstall torchvision (nothing here needs it)" in problem for problem in (mismatch, broken))
    sys.modules.pop("torchvision", None)


@pytest.mark.parametrize(
    ("cuda", "driver", "card", "problem", "note"),
    [
        (None, True, True, "a build without CUDA", None),
        ("13.0", True, True, "CUDA 13.0 cannot use it", None),
        ("13.0", False, True, "no driver: install it", None),
        (None, False, True, None, "runs use the CPU"),
        ("13.0", False, False, None, "no card is here"),
        (None, False, False, None, None),
    ],
)
def test_an_accelerator_that_would_idle_is_a_problem(
    cuda: str | None, driver: bool, card: bool, problem: str | None, note: str | None
) -> None:
    problems, notes = doctor.accelerator_findings(cuda, usable=False, driver=driver, card=card)
    assert [problem in text for text in problems] == ([True] if problem else [])  # ty: ignore[unsupported-operator]
    assert [note in text for text in notes] == ([True] if note else [])  # ty: ignore[unsupported-operator]
    assert doctor.accelerator_findings(cuda, usable=True, driver=driver, card=card) == ([], [])


def test_the_token_is_known_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor._hub()["hub"]["token"] is False
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    facts = doctor.examine()
    assert facts["hub"]["token"] is True
    assert "secretsecret" not in json.dumps(facts) + doctor_text(facts)
    assert "a token is there" in doctor_text(facts)


def test_the_hub_is_told_as_it_is_set(facts: dict[str, Any]) -> None:
    import os

    assert facts["hub"]["home"] == os.environ["HF_HOME"]
    assert "offline (HF_HUB_OFFLINE)" in doctor_text(facts)


def test_little_disk_or_memory_is_a_problem() -> None:
    scarce = doctor._scarce({"free_disk_bytes": 2**30, "available_memory_bytes": 2**29})
    assert "only 1.0 GiB of disk" in scarce[0]
    assert "only 0.5 GiB of memory" in scarce[1]
    assert doctor._scarce({"free_disk_bytes": 2**40, "available_memory_bytes": None}) == []
