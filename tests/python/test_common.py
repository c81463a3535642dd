"""hora.common: the helpers and exceptions that callers of Horovod's use."""

from __future__ import annotations

import os
import warnings

import pytest
from hora.common import basics, exceptions, util


def test_split_list() -> None:
    assert util.split_list([1, 2, 3, 4, 5], 2) == [[1, 2, 3], [4, 5]]
    assert util.split_list([1], 3) == [[1], [], []]
    assert util.split_list((1, 2), 2) == [(1,), (2,)]


def test_num_rank_is_power_2() -> None:
    assert [n for n in range(-1, 10) if util.num_rank_is_power_2(n)] == [1, 2, 4, 8]


def test_env(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HORA_TEST_OLD", "old")
    monkeypatch.delenv("HORA_TEST_NEW", raising=False)
    with pytest.raises(KeyError), util.env(HORA_TEST_OLD="1", HORA_TEST_NEW="2", HORA_TEST_NO=None):
        assert (os.environ["HORA_TEST_OLD"], os.environ["HORA_TEST_NEW"]) == ("1", "2")
        assert "HORA_TEST_NO" not in os.environ
        raise KeyError
    assert os.environ["HORA_TEST_OLD"] == "old" and "HORA_TEST_NEW" not in os.environ


def test_cache() -> None:
    calls = []

    @util._cache
    def function(x: int, y: int = 0) -> int:
        calls.append(x)
        return x + y

    assert [function(1), function(1), function(2), function(1, y=1)] == [1, 1, 2, 2]
    assert calls == [1, 2, 1]


def test_extensions(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    assert util.extension_available("torch", verbose=True)
    assert "torch was built" in capsys.readouterr().out
    assert not util.extension_available("tensorflow")
    util.check_extension("horovod.torch", "HOROVOD_WITH_PYTORCH", __file__, "mpi_lib_v2")
    with pytest.raises(ImportError, match="tensorflow has no interface"):
        util.check_extension("horovod.tensorflow", "HOROVOD_WITH_TENSORFLOW", __file__, "mpi_lib")
    assert isinstance(util.gpu_available("torch"), bool)
    assert util.gloo_built(verbose=True) is True
    assert util.mpi_built() == basics.mpi_built() and util.nccl_built() == basics.nccl_built()
    assert util.ddl_built() is util.ccl_built() is False


def test_average_and_op() -> None:
    choose = util.get_average_backwards_compatibility_fun(None)
    assert (choose(None, None), choose(3, None)) == (0, 3)

    def allreduce(op: int | None, average: bool | None) -> int:
        return choose(op, average)

    with pytest.warns(DeprecationWarning) as caught:
        assert (allreduce(None, True), allreduce(None, False)) == (0, 1)
    assert caught[0].filename == __file__
    with pytest.raises(ValueError, match="supersedes"):
        choose(1, False)


def test_installed_version() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        util.check_installed_version("torch", "99.0")  # nothing was recorded
    text = exceptions.get_version_mismatch_message("torch", "2.0", "1.0")
    assert "torch 1.0" in text and "2.0" in text
    error = exceptions.HorovodVersionMismatchError("torch", "2.0", "1.0")
    assert isinstance(error, ImportError) and str(error) == text
    assert (error.name, error.version, error.installed_version) == ("torch", "2.0", "1.0")


def test_exceptions() -> None:
    assert issubclass(exceptions.HorovodInternalError, RuntimeError)
    assert exceptions.HostsUpdatedInterrupt().skip_sync is False
    assert exceptions.HostsUpdatedInterrupt(skip_sync=True).skip_sync is True


def test_what_is_built() -> None:
    from hora.torch.mpi_ops import _basics

    assert isinstance(_basics, basics.HorovodBasics)
    assert (_basics.Average, _basics.Sum, _basics.Adasum) == (0, 1, 2)
    assert (_basics.Min, _basics.Max, _basics.Product) == (3, 4, 5)
    assert isinstance(basics.nccl_built(), int) and not isinstance(basics.nccl_built(), bool)
    assert not _basics.is_initialized() and not _basics.mpi_enabled() and _basics.gloo_enabled()
    for call in (_basics.rank, _basics.is_homogeneous, _basics.stop_timeline,
                 lambda: _basics._process_set_rank(0)):  # fmt: skip
        with pytest.raises(ValueError, match=r"not been initialized; use hvd.init\(\)"):
            call()


def test_version_of_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"name": "nccl", "available": True, "detail": "NCCL 2.21.5 in libnccl.so.2"}
    monkeypatch.setattr(basics._core, "backends", lambda: [row])
    assert basics.nccl_built() == 22105
    row["available"] = False
    assert basics.nccl_built() == 0
