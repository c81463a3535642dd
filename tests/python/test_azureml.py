"""examples/azureml: one train.py by every launcher, its job files, ONNX, plots and sweeps."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ranks

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "azureml"
LIMIT = 180.0
SMALL = ["--width", "32", "--onnx", "skip"]


def call(*command: Any, cwd: Path = EXAMPLE, code: int = 0) -> str:
    env = ranks.clean_environment() | {"PYTHONDONTWRITEBYTECODE": "1"}
    env |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    done = subprocess.run([str(word) for word in command], cwd=cwd, env=env, text=True,
                          timeout=LIMIT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)
    assert done.returncode == code, done.stdout
    return done.stdout


def load(name: str) -> Any:
    """A module of the example."""
    path = EXAMPLE / f"{name}.py"
    specification = importlib.util.spec_from_file_location(f"azureml_{name}", path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())["result"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Has data/."""
    path = tmp_path_factory.mktemp("azureml")
    assert "wrote" in call(sys.executable, EXAMPLE / "prepare.py", path / "data")
    return path


@pytest.fixture(scope="module")
def alone(folder: Path) -> Path:
    """The outputs of one process, whose data was missing at first."""
    call(sys.executable, EXAMPLE / "train.py", "--data_dir", folder / "new", "--output_dir",
         folder / "alone", "--epochs", 3, *SMALL)
    for name in ("train.npz", "test.npz"):
        assert (folder / "new" / name).read_bytes() == (folder / "data" / name).read_bytes()
    return folder / "alone"


LAUNCHERS = {
    "hora run": [sys.executable, "-m", "hora", "run", "-np", "2", sys.executable],
    "mpirun": ["mpirun", "--oversubscribe", "-np", "2", sys.executable],
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"],
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launchers(launcher: str, folder: Path, alone: Path) -> None:
    command = LAUNCHERS[launcher]
    if shutil.which(command[0]) is None:
        pytest.skip(f"there is no {command[0]}")
    output = folder / launcher.replace(" ", "-")
    text = call(*command, EXAMPLE / "train.py", "--data_dir", folder / "data", "--output_dir",
                output, "--epochs", 3, *SMALL)
    assert text.count("epoch   3 of 3") == 1, "rank 0 alone reports"
    rows = rows_of(output)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[2]["loss"] < rows[0]["loss"] and rows[2]["accuracy"] > 0.7
    for row, other in zip(rows, rows_of(alone)):  # the network does not depend on who trains it
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-3)
    result = result_of(output)
    assert result["processes"] == 2 and result["loss"] == rows[2]["loss"]
    assert (output / "model.pt").exists() and not (output / "model.onnx").exists()


def test_batch_that_cannot_be_divided(folder: Path) -> None:
    text = call(*LAUNCHERS["hora run"], EXAMPLE / "train.py", "--data_dir", folder / "data",
                "--output_dir", folder / "odd", "--batch-size", 63, code=1)
    assert "--batch-size 63 cannot be divided among 2 processes" in text


# ---- The job files -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mpi", "pytorch"])
def test_job_file(kind: str, folder: Path) -> None:
    yaml = pytest.importorskip("yaml")
    job = yaml.safe_load((EXAMPLE / f"job_{kind}.yml").read_text())
    assert job["type"] == "command" and job["code"] == "."
    assert job["distribution"] == {"type": kind, "process_count_per_instance": 2}
    assert job["resources"]["instance_count"] == 2
    assert (EXAMPLE / job["environment"]["conda_file"]).exists()
    used = set(re.findall(r"\$\{\{(\w+\.\w+)\}\}", job["command"]))
    given = {f"inputs.{name}" for name in job["inputs"]}
    assert used == given | {f"outputs.{name}" for name in job["outputs"]}
    if kind == "mpi":  # the command itself, as one of several processes would get it
        values = {f"inputs.{name}": str(value) for name, value in job["inputs"].items()}
        values |= {"inputs.data": str(folder / "data"), "outputs.results": str(folder / "job"),
                   "inputs.epochs": "1"}
        command = re.sub(r"\$\{\{([\w.]+)\}\}", lambda m: shlex.quote(values[m[1]]), job["command"])
        words = shlex.split(command)
        assert words[:2] == ["python", "train.py"]
        call(sys.executable, *words[1:], "--onnx", "skip")
        assert len(rows_of(folder / "job")) == 1


def test_environment_file() -> None:
    yaml = pytest.importorskip("yaml")
    environment = yaml.safe_load((EXAMPLE / "conda.yml").read_text())
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert any(word.startswith("hora[examples]") for word in pip)


def test_every_argument_of_the_estimator_is_mapped() -> None:
    text = (EXAMPLE / "README.md").read_text()
    for name in (
        "source_directory", "entry_script", "script_params", "compute_target", "node_count",
        "process_count_per_node", "distributed_backend", "use_gpu", "conda_packages",
        "pip_packages",
    ):  # fmt: skip
        assert re.search(rf"^\| `{name}=.*\| .+ \|$", text, re.MULTILINE), name


# ---- ONNX ----------------------------------------------------------------------------------------


def test_onnx(folder: Path) -> None:
    export = load("export")
    absent = export.missing()
    if absent:
        pytest.skip(f"not installed: {', '.join(absent)}")
    output = folder / "onnx"
    text = call(sys.executable, EXAMPLE / "train.py", "--data_dir", folder / "data",
                "--output_dir", output, "--epochs", 1, "--width", 32, "--onnx", "require")
    assert "model.onnx: onnxruntime differs from torch by at most" in text
    onnx = result_of(output)["onnx"]
    assert onnx["state"] == "checked" and onnx["max_difference"] < 1e-4 and onnx["samples"] == 360
    import torch

    other = torch.nn.Sequential(torch.nn.Linear(64, 10))  # what does not agree is found
    assert export.difference(other, torch.rand(5, 64), output / "model.onnx") > 1e-2
    export.write = lambda model, pixels, path: None
    result = export.export_onnx(other, torch.rand(5, 64), output / "model.onnx", "auto")
    assert result["state"] == "failed"


def test_without_the_packages_for_onnx(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = load("export")
    monkeypatch.setattr(export, "NEEDED", ("onnx", "no_such_package"))
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    for how, state in (("auto", "skipped"), ("require", "failed"), ("skip", "skipped")):
        result = export.export_onnx(None, None, tmp_path / "model.onnx", how)
        assert result["state"] == state
    assert "install onnx, no_such_package (pip install hora[examples])" in capsys.readouterr().out


# ---- Plots and sweeps ----------------------------------------------------------------------------


def test_plot(alone: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    going_on = tmp_path / "going-on"
    going_on.mkdir()
    text = (alone / "metrics.jsonl").read_text()
    (going_on / "metrics.jsonl").write_text(text + '{"epoch": 4, "lo')  # being written
    picture = tmp_path / "metrics.png"
    said = call(sys.executable, EXAMPLE / "plot_metrics.py", alone, going_on, "--output", picture)
    assert "drew 2 runs" in said
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and picture.stat().st_size > 5000
    said = call(sys.executable, EXAMPLE / "plot_metrics.py", tmp_path / "nothing", code=2)
    assert "no metrics of" in said


def test_sweep(folder: Path) -> None:
    output = folder / "sweep"
    text = call(sys.executable, EXAMPLE / "sweep.py", "-np", 2, "--grid", "lr=fast,0.1",
                "--data_dir", folder / "data", "--output", output, "--", "--epochs", 1,
                "--width", 32)  # fmt: skip
    sweep = json.loads((output / "sweep.json").read_text())
    assert [run["point"]["lr"] for run in sweep["runs"]] == ["fast", "0.1"]
    assert sweep["best"]["point"] == {"lr": "0.1"} and sweep["best"]["result"]["processes"] == 2
    assert "error" in sweep["runs"][0]
    assert "invalid float" in (output / "run-01/log.txt").read_text()
    assert re.search(r"^run-02 +0\.1 +.*<- best$", text, re.MULTILINE)
    assert re.search(r"^run-01 +fast +- +failed$", text, re.MULTILINE)


def test_points_and_best_of_a_sweep() -> None:
    sweep = load("sweep")
    results = [{"accuracy": 0.5, "loss": 1.0}, {"accuracy": 0.9, "loss": 0.3},
               {"accuracy": 0.9, "loss": 0.2}, {"accuracy": 0.8, "loss": 0.1}]  # fmt: skip
    rows: list[dict[str, Any]] = [{"error": "ended with 1"}, *({"result": r} for r in results)]
    assert sweep.best_of(rows) is rows[3] and sweep.best_of(rows[:1]) is None
    grid = sweep.parse_grid(["lr=0.01:0.5", "momentum=0.5,0.9"])
    points = sweep.random_points(grid, 50, 1)
    assert points == sweep.random_points(grid, 50, 1) != sweep.random_points(grid, 50, 2)
    assert all(0.01 <= float(point["lr"]) <= 0.5 for point in points)
    assert {point["momentum"] for point in points} == {"0.5", "0.9"}
    assert sum(float(point["lr"]) < 0.07 for point in points) > 15, "even on a logarithmic scale"
    whole = sweep.all_points(sweep.parse_grid(["a=1,2", "b=x,y,z"]))
    assert len(whole) == 6 and whole[0] == {"a": "1", "b": "x"}
    for bad in (["lr"], ["lr="], ["lr=0:1"], ["lr=1:0.1"], ["lr=a:b"]):
        with pytest.raises(ValueError):
            sweep.parse_grid(bad)
    with pytest.raises(ValueError, match="--random"):
        sweep.all_points(grid)
    call(sys.executable, EXAMPLE / "sweep.py", "--grid", "lr", code=2)
