"""A trained model as ONNX, checked with onnxruntime against what torch computes."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

NEEDED = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4  # of the scores; float32, in another order of additions


def missing() -> list[str]:
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def write(model: torch.nn.Module, pixels: torch.Tensor, path: Path) -> None:
    """For any number of samples."""
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (pixels[:2],), str(path), input_names=["pixels"],
                          output_names=["scores"], dynamic_shapes=({0: batch},), dynamo=True,
                          external_data=False, verbose=False)


def difference(model: torch.nn.Module, pixels: torch.Tensor, path: Path) -> float:
    """The largest by which onnxruntime's scores differ from torch's."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (scores,) = session.run(["scores"], {"pixels": pixels.numpy()})
    with torch.no_grad():
        return float(np.abs(scores - model(pixels).numpy()).max())


def export_onnx(model: torch.nn.Module, pixels: torch.Tensor, path: Path,
                how: str) -> dict[str, Any]:
    """how: auto, require or skip. Says what came of it, on the terminal too."""
    if how == "skip":
        return {"state": "skipped"}
    absent = missing()
    if absent:
        text = f"not exported to ONNX: install {', '.join(absent)} (pip install hora[examples])"
        print(text, flush=True)
        return {"state": "failed" if how == "require" else "skipped", "reason": text}
    model.eval()
    write(model, pixels, path)
    largest = difference(model, pixels, path)
    good = largest <= TOLERANCE
    print(f"{path.name}: onnxruntime differs from torch by at most {largest:.1e}"
          f"{'' if good else f', more than {TOLERANCE}'}", flush=True)
    return {"state": "checked" if good else "failed", "max_difference": largest,
            "samples": len(pixels)}
