"""The name `horovod`: the same modules, the distribution that brings it, and a Horovod in the way."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import ranks

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("scripts") / "synthetic_benchmark.py"


def run(command: list[str], paths: list[Path] | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """With these folders searched for modules before all others."""
    search = [str(path) for path in paths or []] + [os.environ.get("PYTHONPATH", "")]
    given = ranks.clean_environment() | {"PYTHONPATH": os.pathsep.join(filter(None, search))} | env
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=given, check=False)


def python(program: str, paths: list[Path] | None = None) -> str:
    done = run([sys.executable, "-c", program], paths)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed hora-horovod, without network."""
    if importlib.util.find_spec("pip") is None:
        pytest.skip("there is no pip in this environment")
    tools = os.pathsep.join([str(Path(sys.executable).parent), str(Path(sys.prefix) / "bin"),
                             str(Path(sys.base_prefix) / "bin"), os.environ["PATH"]])
    missing = [tool for tool in ("meson", "ninja") if shutil.which(tool, path=tools) is None]
    if importlib.util.find_spec("mesonpy") is None:
        missing.append("meson-python")
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    folder = tmp_path_factory.mktemp("site")
    done = run([sys.executable, "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps",
                "--no-index", "--target", str(folder), str(ROOT / "python" / "horovod-alias")],
               PATH=tools)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


IDENTITY = """
import importlib, importlib.util, pickle, sys
{on}
import horovod.torch as hvd
import horovod, hora, hora.torch
assert horovod is hora and hvd is hora.torch is sys.modules["horovod.torch"]
from horovod.torch.mpi_ops import synchronize
from horovod.runner.launch import parse_args
import hora.runner.launch
assert parse_args is hora.runner.launch.parse_args
import horovod.torch.mpi_ops, horovod.common.util, horovod.common.process_sets
assert horovod.torch.mpi_ops is hora.torch.mpi_ops
assert horovod.torch.mpi_ops.synchronize is synchronize
# The import system's own notes are those of hora's module.
assert hora.torch.__spec__.name == "hora.torch" == hora.torch.__name__
import horovod.torch.compression
assert importlib.reload(horovod.torch.compression) is hora.torch.compression
assert sys.modules["hora.torch.compression"] is sys.modules["horovod.torch.compression"]
assert pickle.loads(pickle.dumps(hvd.allreduce)) is hora.torch.allreduce
assert pickle.loads(b"chorovod.torch\\nallreduce\\n.") is hora.torch.allreduce
assert importlib.util.find_spec("horovod.torch.functions") is not None
assert importlib.util.find_spec("horovod.nothing") is None
assert horovod.__version__ == hora.__version__ and callable(horovod.run)
# A module that is first imported under the other name.
import horovod.runner.check_build
assert sys.modules["hora.runner.check_build"] is horovod.runner.check_build
for name, what in (("tensorflow", "TensorFlow"), ("tensorflow.keras", "TensorFlow"), ("keras", "Keras"),
                   ("mxnet", "MXNet"), ("spark", "Spark"), ("ray", "Ray")):
    try:
        importlib.import_module("horovod." + name)
    except ImportError as error:
        assert what in str(error) and "PyTorch only" in str(error), error
    else:
        raise AssertionError(name)
try:
    import horovod.nothing
except ModuleNotFoundError as error:
    assert error.name == "horovod.nothing"
print("well")
"""


def test_identity_in_process() -> None:
    on = "import hora.horovod_alias as alias; alias.install(); alias.install()"
    assert python(IDENTITY.format(on=on)) == "well\n"


def test_identity_by_the_distribution(site: Path) -> None:
    assert python(IDENTITY.format(on=""), [site]) == "well\n"


def test_remove() -> None:
    program = (
        "import hora.horovod_alias as alias, sys\n"
        "alias.install(); import horovod.runner.hosts; alias.remove()\n"
        "assert not [name for name in sys.modules if name.startswith('horovod')]\n"
        "assert alias.Finder not in sys.meta_path and 'hora.runner.hosts' in sys.modules\n")
    python(program)


def test_switched_on_twice_and_after_the_distribution(site: Path) -> None:
    python("import horovod, hora.horovod_alias as a; a.install(); import horovod.runner", [site])
    python("import hora.horovod_alias as a; a.install(); import horovod.runner", [site])


def real_horovod(folder: Path, metadata: bool) -> Path:
    package = folder / "horovod"
    package.mkdir()
    (package / "__init__.py").write_text("__version__ = '0.28.1'\n")
    if metadata:
        info = folder / "horovod-0.28.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: horovod\nVersion: 0.28.1\n")
    return folder


TRY = """
try:
    {what}
except ImportError as error:
    print(error)
"""


@pytest.mark.parametrize("metadata", [True, False])
def test_installed_horovod_is_not_hidden(tmp_path: Path, site: Path, metadata: bool) -> None:
    real = real_horovod(tmp_path, metadata)
    text = "Horovod 0.28.1 is installed" if metadata else f"a package horovod in {real / 'horovod'}"
    for what in ("import hora.horovod_alias as a; a.install()", "import horovod.torch"):
        said = python(TRY.format(what=what), [site, real])
        assert text in said and "pip uninstall horovod" in said, said
        assert "pip uninstall hora-horovod" in said
    assert python("import horovod; print(horovod.__version__)", [real, site]) == "0.28.1\n"


def test_horovod_that_is_imported_already_stays(tmp_path: Path) -> None:
    real = real_horovod(tmp_path, metadata=False)
    program = "import sys, horovod; sys.path.remove(sys.argv[1])" + TRY.format(
        what="import hora.horovod_alias as a; a.install()") + "\nprint(horovod.__version__)"
    done = run([sys.executable, "-c", program, str(real)], [real])
    assert "is imported already from" in done.stdout and done.stdout.endswith("0.28.1\n"), done


def launchers(site: Path) -> dict[str, list[str]]:
    found = {
        "horovodrun": [str(site / "bin" / "horovodrun"), "-np", "2"],
        "hora run": [sys.executable, "-m", "hora", "run", "-np", "2"],
    }
    mpirun = shutil.which("mpirun")
    if mpirun:
        root = ["--allow-run-as-root"] if os.getuid() == 0 else []
        found["mpirun"] = [mpirun, *root, "--oversubscribe", "-np", "2"]
    return found


@pytest.mark.parametrize("launcher", ["horovodrun", "hora run", "mpirun"])
def test_script_for_horovod_runs_unchanged(launcher: str, site: Path) -> None:
    pytest.importorskip("torch")
    assert "hora" not in SCRIPT.read_text().partition('"""\n')[2].replace("horovod", "")
    commands = launchers(site)
    if launcher not in commands:
        pytest.skip("there is no mpirun in PATH")
    done = run([*commands[launcher], sys.executable, str(SCRIPT)], [site])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "same weights: True" in done.stdout and "on 2 CPU(s)" in done.stdout
