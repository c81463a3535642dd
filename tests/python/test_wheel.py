"""The wheel: built by pip, installed into an empty environment, used outside of the source tree."""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import ranks

ROOT = Path(__file__).resolve().parents[2]

TRAIN = """
import torch, hora, hora.torch as hvd
hvd.init()
torch.manual_seed(hvd.rank())
model = torch.nn.Linear(4, 2)
optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1),
                                     model.named_parameters())
hvd.broadcast_parameters(model.state_dict(), root_rank=0)
model(torch.full((3, 4), float(hvd.rank()))).sum().backward()
optimizer.step()
weights = hvd.allgather(model.weight.detach()[None])
assert hvd.size() == 2 and torch.equal(weights[0], weights[1])
print(hora.__file__)
"""


def check(command: list[str], **options: object) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def has_build_tools(path: str) -> bool:
    tools = all(shutil.which(tool, path=path) for tool in ("meson", "ninja", "patchelf"))
    return tools and importlib.util.find_spec("mesonpy") is not None


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without network where the tools are installed, otherwise as pip does it."""
    made = os.environ.get("HORA_TEST_WHEEL")  # tools/test has built one already
    if made:
        return Path(made)
    folder = tmp_path_factory.mktemp("wheel")
    tools = [str(Path(sys.prefix) / "bin"), str(Path(sys.base_prefix) / "bin")]
    path = os.pathsep.join([*tools, os.environ["PATH"]])
    isolation = ["--no-build-isolation"] if has_build_tools(path) else []
    command = [sys.executable, "-m", "pip", "wheel", *isolation, "--no-deps", "-w", str(folder)]
    check([*command, str(ROOT)], env=os.environ | {"PATH": path})
    (result,) = folder.glob("hora-*.whl")
    return result


@pytest.mark.slow
def test_contents(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    names = set(archive.namelist())
    assert "-cp310-abi3-linux" in wheel.name, "whatever Python built it"
    (label,) = (name for name in names if name.endswith(".dist-info/WHEEL"))
    assert "\nTag: cp310-abi3-linux" in archive.read(label).decode()
    for name, digest, size in csv.reader(archive.read(label[:-5] + "RECORD").decode().splitlines()):
        data = archive.read(name)
        found = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        assert name.endswith("/RECORD") or (digest, int(size)) == (f"sha256={found}", len(data))
    for needed in ("_core.abi3.so", "libhora.so", "hora-perf", "hora-check", "cli.py", "runner/agent.py",
                   "torch/__init__.py", "common/basics.py", "include/hora/hora.h"):  # fmt: skip
        assert f"hora/{needed}" in names, f"{needed} not in {sorted(names)}"
    assert not any(".so." in name or name.startswith("tests/") for name in names), names
    assert archive.getinfo("hora/hora-perf").external_attr >> 16 & 0o111, "programs can be executed"
    assert any(name.endswith("licenses/LICENSE") or name.endswith("/LICENSE") for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.10", f"3.{sys.version_info.minor + 1}"])
def test_installs_on_other_pythons(wheel: Path, tmp_path: Path, version: str) -> None:
    check([sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--quiet",
           "--only-binary=:all:", "--python-version", version, "--target", str(tmp_path),
           str(wheel)])  # fmt: skip


@pytest.mark.slow
def test_trains_outside_of_the_source_tree(wheel: Path, tmp_path: Path) -> None:
    """torch comes from the environment that runs the tests, hora from the wheel alone."""
    import torch

    environment = tmp_path / "venv"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    site = Path(check([str(python), "-c", "import site; print(site.getsitepackages()[0])"]).strip())
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps"]
    check([*command, "--no-index", str(wheel)])
    # Behind the environment's own packages, so that hora cannot come from there.
    (site / "torch.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    program = tmp_path / "train.py"
    program.write_text(TRAIN)
    meeting = f"hora-test-wheel-{os.getpid()}"
    processes = [
        subprocess.Popen(
            [str(python), str(program)],
            env=ranks.clean_environment() | ranks.hora_variables(rank, 2, meeting),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for process in processes:
            output, _ = process.communicate(timeout=120)
            assert process.returncode == 0, output
            assert str(environment) in output
    finally:
        for process in processes:
            process.kill()
            process.wait()
    listed = check([str(environment / "bin" / "hora"), "--help"], cwd=tmp_path)
    assert "hora" in listed
