"""Run one notebook on the pretended GPU (`python tests/notebook_on_gpu.py 05`) and print which cells fail there.

Every epoch ends after one batch: this is about devices, not results. So a cell that asserts a result may fail, and that
is not counted.
"""

import contextlib
import io
import itertools
import os
import sys
import traceback
from pathlib import Path

os.environ |= {"COURSE_JOBS": "1", "COURSE_QUIET": "1", "MPLBACKEND": "agg"}  # one process: the pretended GPU is in it
os.environ.pop("COURSE_DEVICE", None)

import nbformat
import torch
from IPython.core.interactiveshell import InteractiveShell
from pretend_gpu import DEVICE, pretend_gpu

from course_utils import runtime, training
from course_utils.experiments import studies

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
whole_epoch = training._one_epoch


class OneBatch:
    def __init__(self, batches):
        self.dataset, self.batches = batches.dataset, batches

    def with_indices(self):
        return itertools.islice(self.batches.with_indices(), 1)


def choose_device(_device=None):
    return DEVICE, torch.float32


def main(number: str) -> int:
    runtime.choose_device = studies.choose_device = choose_device
    training._one_epoch = lambda model, batches, *rest: whole_epoch(model, OneBatch(batches), *rest)
    torch.set_num_threads(1)
    shell, failed = InteractiveShell.instance(), 0
    (path,) = NOTEBOOKS.glob(f"{number}_*.ipynb")
    os.chdir(NOTEBOOKS)
    with pretend_gpu() as gpu:
        for i, cell in enumerate(nbformat.read(path, as_version=4).cells):
            if cell.cell_type != "code":
                continue
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                done = shell.run_cell(cell.source)
            error = done.error_before_exec or done.error_in_exec
            if error is not None and not isinstance(error, AssertionError):
                failed += 1
                print(f"cell {i}:", *traceback.format_exception(error, limit=-6))
    print(f"{len(gpu.calls)} calls on the GPU, {failed} cells failed")
    return failed or not gpu.calls


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
