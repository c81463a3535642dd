#!/usr/bin/env python3
"""hora.torch on a real GPU: two ranks on one, by each path. Needs torch and an installed hora only.

    tests/gpu/torch_cuda.py [PATH...]     ipc, staged, nccl and nccl:3, unless some are named

nccl:3 is nccl with three streams of the engine's (HORA_NUM_NCCL_STREAMS).

Prints what failed, and a line for each path; 77: there is no GPU. HORA_TEST_DEVICE=cpu runs the cases on
the CPU instead, whatever the path. With pytest: test_torch_cuda.py.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator

HERE = Path(__file__).resolve().parent
ON_CPU = os.environ.get("HORA_TEST_DEVICE") == "cpu"
PATHS = ["ipc", "staged", "nccl", "nccl:3"]
LIMIT = float(os.environ.get("HORA_TEST_LIMIT", "150"))  # seconds for one launch
RANKS = 2


@dataclass
class End:
    """How one rank ended."""

    code: int
    output: str
    results: dict[str, str | None]  # of cases: None, or what went wrong; of a program: its text


def why_not() -> str:
    """Why there is nothing to test here; asked in another process."""
    if ON_CPU:
        return ""
    code = ("import torch; torch.zeros(1, device='cuda'); from hora import _core\n"
            "row = next(r for r in _core.backends() if (r['name'], r['kind']) == ('cuda', 'device'))\n"
            "assert row['available'], 'hora: ' + row['detail']")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


def environment(path: str, rank: int, meeting: str) -> dict[str, str]:
    """NCCL takes two ranks for one GPU if it believes that they are on two hosts."""
    strangers = ("HORA_", "HOROVOD_", "OMPI_", "PMI_", "SLURM_")
    env = {k: v for k, v in os.environ.items()
           if not k.startswith(strangers) or k.startswith("HORA_TEST")}  # fmt: skip
    path, _, streams = path.partition(":")
    return env | {
        "HORA_NUM_NCCL_STREAMS": streams or "1", "HORA_TEST_LIMIT": str(LIMIT),
        "HORA_RANK": str(rank), "HORA_SIZE": str(RANKS),
        "HORA_LOCAL_RANK": str(rank), "HORA_LOCAL_SIZE": str(RANKS),
        "HORA_RENDEZVOUS": f"unix:{meeting}", "HORA_TIMEOUT": "60", "HORA_GPU_PATH": path,
        "OMP_NUM_THREADS": "1",
        "NCCL_HOSTID": f"rank{rank}", "NCCL_SOCKET_IFNAME": "lo", "NCCL_NET": "Socket",
        "NCCL_MNNVL_ENABLE": "0", "NCCL_NVLS_ENABLE": "0", "NCCL_CUMEM_HOST_ENABLE": "0",
        "NCCL_RAS_ENABLE": "0",
    }  # fmt: skip


def launch(program: str, path: str) -> list[End]:
    """Runs a program of cases_cuda.py on all ranks. Late ones are killed."""
    meeting = f"hora-test-{secrets.token_hex(8)}"
    with tempfile.TemporaryDirectory(prefix="hora-gpu-") as folder:
        files = [Path(folder) / f"{rank}.json" for rank in range(RANKS)]
        outputs = [Path(folder) / f"{rank}.out" for rank in range(RANKS)]
        ranks = []
        for rank in range(RANKS):
            command = [sys.executable, str(HERE / "cases_cuda.py"), program, str(files[rank])]
            with open(outputs[rank], "wb") as output:
                ranks.append(subprocess.Popen(command, env=environment(path, rank, meeting),
                                              stdin=subprocess.DEVNULL, stdout=output,
                                              stderr=subprocess.STDOUT))  # fmt: skip
        end = time.monotonic() + LIMIT
        for process in ranks:
            try:
                process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        return [End(process.returncode, output.read_text(errors="replace")[-4000:],
                    json.loads(file.read_text()) if file.exists() else {})
                for process, output, file in zip(ranks, outputs, files)]  # fmt: skip


def run_cases(path: str) -> dict[str, str]:
    """What went wrong in each case; "": nothing."""
    from cases_cuda import CASES

    ends = launch("cases", path)
    complaints = {}
    for case in CASES:
        texts = []
        for rank, end in enumerate(ends):
            text = end.results.get(case, f"not run to the end (exit code {end.code})\n{end.output}")
            texts += [] if text is None else [f"rank {rank}: {text}"]
        complaints[case] = "\n".join(texts)
    return complaints


def run_out_of_memory(path: str) -> str:
    for rank, end in enumerate(launch("out_of_memory", path)):
        text = end.results.get("out_of_memory")
        if end.code != 0 or not text or text == "no error":
            return f"rank {rank}: {text} (exit code {end.code})\n{end.output}"
    return ""


def run_killed(path: str) -> str:
    first, second = launch("killed", path)
    text = first.results.get("killed")
    if second.code != -9 or first.code != 0 or not text or text == "no error":
        return f"rank 0: {text} (exit code {first.code}); rank 1: {second.code}\n{first.output}"
    return ""


def parts(path: str) -> Iterator[dict[str, str]]:
    """Everything, by one path, as it comes. With more streams, only the cases."""
    yield run_cases(path)
    if ":" not in path:
        yield {"killed": run_killed(path)}
    if ":" not in path and not ON_CPU:
        yield {"out_of_memory": run_out_of_memory(path)}


def run(path: str) -> dict[str, str]:
    return {name: text for part in parts(path) for name, text in part.items()}


def main() -> int:
    if set(sys.argv[1:]) & {"-h", "--help"}:
        print(__doc__)
        return 0
    if why_not():
        print(f"no test of hora.torch on a GPU: {why_not()}")
        return 77
    failed = 0
    for path in sys.argv[1:] or PATHS:
        began = time.monotonic()
        results: dict[str, str] = {}
        for part in parts(path):
            results |= part
            for name, text in part.items():
                if text:
                    print(f"FAILED: {path}, {name}\n{text}", flush=True)
        bad = sum(map(bool, results.values()))
        print(f"hora.torch {'on the CPU' if ON_CPU else f'by {path}'}: {len(results) - bad} passed, {bad} failed "
              f"({time.monotonic() - began:.0f} s)", flush=True)  # fmt: skip
        failed += bad
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
