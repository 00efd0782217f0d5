"""course_utils/classroom/notebooks.py on tiny notebooks: what is written, and when nothing is."""

import base64
import io
import json

import nbformat
import numpy as np
import pytest
from nbclient.exceptions import CellExecutionError, CellTimeoutError
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from course_utils.classroom import notebooks
from course_utils.classroom.images import reduce_png

PLOT = "import matplotlib.pyplot as plt\nplt.plot([1, 2, 3])\nplt.show()"
SLIDER = "import ipywidgets\nipywidgets.IntSlider(3)"
OWN_PYTHON = "import os, sys\nprint(os.getcwd().endswith('수업'), sys.prefix == os.environ['EXPECTED_PREFIX'])"


def write(folder, *cells, name="01_tiny.ipynb", kernel="python3"):
    folder.mkdir(exist_ok=True)
    metadata = {"kernelspec": {"name": kernel, "display_name": "?", "language": "python"}}
    cells = [new_code_cell(cell) if isinstance(cell, str) else cell for cell in cells]
    nbformat.write(new_notebook(cells=cells, metadata=metadata), folder / name)
    return folder / name


def test_outputs_are_written_in_one_clean_run_by_this_interpreter(tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "kernels-of-someone-else"))
    monkeypatch.setenv("EXPECTED_PREFIX", notebooks.sys.prefix)
    stale = new_code_cell("", execution_count=9, outputs=[new_output("stream", text="old")])
    path = write(tmp_path / "수업", new_markdown_cell("# 제목"), OWN_PYTHON, stale, PLOT, SLIDER, kernel="no-such")
    before = nbformat.read(path, as_version=4)
    notebooks.execute(path)
    after = nbformat.read(path, as_version=4)

    assert [c.id for c in after.cells] == [c.id for c in before.cells]
    assert [c.source for c in after.cells] == [c.source for c in before.cells]
    _, own, empty, plot, slider = after.cells
    assert [own.execution_count, plot.execution_count, slider.execution_count] == [1, 2, 3]
    assert (empty.execution_count, empty.outputs) == (None, [])
    assert own.outputs == [{"output_type": "stream", "name": "stdout", "text": "True True\n"}]
    assert "IntSlider(value=3)" in slider.outputs[0].data["text/plain"]
    assert "widgets" not in after.metadata and "version" not in after.metadata.language_info
    assert all("execution" not in cell.metadata for cell in after.cells)
    picture = Image.open(io.BytesIO(base64.b64decode(plot.outputs[0].data["image/png"])))
    assert picture.mode == "P" and picture.size[0] > 300 and "Software" not in picture.info
    assert [p.name for p in path.parent.iterdir()] == [path.name], "no temporary file stays"
    text = path.read_bytes()
    assert text.endswith(b"}\n") and b"\r" not in text and "제목".encode() in text


EXPLORE = """
from course_utils.classroom.widgets import explore
def picture(figure):
    (line,) = figure.subplots().plot([0, 1])
    def update(height):
        line.set_ydata([0, height])
        return f"Height {height}."
    return update
explore(picture, size=(2, 1), height=[1, 2])
"""


def test_outputs_and_frames_are_of_one_run(tmp_path, monkeypatch):
    path = write(tmp_path / "notebooks", EXPLORE, new_markdown_cell("# A"))
    before, folder = path.read_bytes(), tmp_path / "frames"
    nb, found = notebooks.with_frames(path, folder=folder)
    assert path.read_bytes() == before, "the notebook itself stays as it was"
    (output,) = nb.cells[0].outputs
    assert "Height 1." in output.data["text/html"] and "<style>" not in output.data["text/html"]
    assert [text for _, text in found[0]["frames"]] == ["Height 1.", "Height 2."]
    assert [place.name for place in folder.iterdir()] == [path.stem], "nothing half made stays"
    ran = []
    monkeypatch.setattr(notebooks, "execute", lambda path, **_: ran.append(path))
    changed = nbformat.read(path, as_version=4)
    changed.cells[1].source = "# B"
    nbformat.write(changed, path)
    nb, found = notebooks.with_frames(path, folder=folder)  # the text is new, the code is not
    assert nb.cells[1].source == "# B" and nb.cells[0].outputs and len(found) == 1 and not ran
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(notebooks, "made_from", lambda: "another package")
        notebooks.with_frames(path, folder=folder)
    assert len(ran) == 1
    changed.cells[0].source += "\n"
    nbformat.write(changed, path)
    notebooks.with_frames(path, folder=folder)
    assert len(ran) == 2


BARS = """
import time
from course_utils.runtime import progress_bar
with progress_bar(3, "run") as bar:
    for _ in range(3):
        time.sleep(0.6)
        bar.update()
with progress_bar(3, "run", delay=60) as bar:
    bar.update()
"""


def test_a_progress_bar_leaves_an_empty_line_in_a_notebook_and_no_widget(monkeypatch, tmp_path):
    monkeypatch.delenv("COURSE_QUIET", raising=False)
    nb = nbformat.read(write(tmp_path, BARS), as_version=4)
    seen = []
    client = notebooks.NotebookClient(nb, resources={"metadata": {"path": str(tmp_path)}})
    update = client.process_message

    def spy(message, *rest):
        seen.append(message["content"].get("data", {}).get("text/plain", ""))
        return update(message, *rest)

    monkeypatch.setattr(client, "process_message", spy)
    client.execute()
    assert any("1/3" in text or "2/3" in text for text in seen), "the bar was shown"
    assert [output.data for output in nb.cells[0].outputs] == [{"text/plain": ""}]


@pytest.mark.parametrize("tags", [[], ["raises-exception"]])
def test_a_cell_that_raises_leaves_the_file_as_it_was(tmp_path, tags):
    path = write(tmp_path, "print(1)", new_code_cell("1 / 0", metadata={"tags": tags}), "print(2)")
    before = path.read_bytes()
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        notebooks.execute(path)
    assert path.read_bytes() == before


def test_a_cell_that_never_ends_leaves_the_file_as_it_was(tmp_path):
    path = write(tmp_path, "import time\ntime.sleep(60)")
    before = path.read_bytes()
    with pytest.raises(CellTimeoutError):
        notebooks.execute(path, timeout=1)
    assert path.read_bytes() == before


def test_an_output_with_the_project_folder_is_refused(tmp_path):
    path = write(tmp_path / "내 folder", "1", "import os\nos.getcwd()")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"01_tiny\.ipynb, code cell 2: an output shows the folder"):
        notebooks.execute(path, root=path.parent)
    assert path.read_bytes() == before


def png(array, mode):
    file = io.BytesIO()
    Image.fromarray(array, mode).save(file, "PNG")
    return file.getvalue()


def test_few_colours_survive_exactly_and_many_nearly():
    few = np.repeat(np.array([[[31, 119, 180], [255, 127, 14], [255, 255, 255]]], np.uint8), 20, axis=0)
    many = np.stack(np.meshgrid(np.arange(256), np.arange(256), [128]), axis=-1).reshape(256, 256, 3).astype(np.uint8)
    for array, worst in ((few, 0), (many, 16)):
        small = Image.open(io.BytesIO(reduce_png(png(array, "RGB"))))
        assert small.mode == "P"
        assert np.abs(np.asarray(small.convert("RGB")).astype(int) - array).max() <= worst


def test_what_is_transparent_becomes_white_and_a_second_reduction_changes_nothing():
    clear = np.zeros((4, 4, 4), np.uint8)
    once = reduce_png(png(clear, "RGBA"))
    assert np.asarray(Image.open(io.BytesIO(once)).convert("RGB")).min() == 255
    assert reduce_png(once) == once


def test_notebooks_are_found_by_number_name_or_path(tmp_path):
    first, second, tenth = (write(tmp_path, name=n) for n in ("01_a.ipynb", "02_b.ipynb", "10_c.ipynb"))
    for names, expected in [
        ((), [first, second, tenth]),
        (("2",), [second]),
        (("10", "01"), [first, tenth]),
        (("02_b", "02_b.ipynb", str(second)), [second]),
    ]:
        assert notebooks.find_notebooks(names, tmp_path) == expected
    with pytest.raises(ValueError, match=r"notebook: got '3'; there are 01_a, 02_b, 10_c"):
        notebooks.find_notebooks(["3"], tmp_path)


def test_the_command_stops_at_the_first_error_and_names_the_notebook(tmp_path, monkeypatch, capsys):
    paths = [write(tmp_path, code, name=f"0{i}_x.ipynb") for i, code in enumerate(["1", "undefined", "2"])]
    monkeypatch.setattr(notebooks, "find_notebooks", lambda names: paths)
    monkeypatch.setattr(notebooks, "FRAMES", tmp_path / "frames")
    assert notebooks.main([]) == 1
    assert [path.name for path in (tmp_path / "frames").iterdir()] == ["00_x"], "nothing is left of what failed"
    captured = capsys.readouterr()
    assert captured.out.startswith("00_x.ipynb") and captured.out.count("\n") == 1
    assert "01_x.ipynb: not saved" in captured.err and "NameError" in captured.err
    counts = [json.loads(path.read_text(encoding="utf-8"))["cells"][0]["execution_count"] for path in paths]
    assert counts == [1, None, None]
