import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "nbs").rglob("*.ipynb"))


def cells(notebook: Path) -> list[dict]:
    return [c for c in json.loads(notebook.read_text())["cells"] if c["cell_type"] == "code"]


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs_are_stripped(notebook):
    for cell in cells(notebook):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None


# A process that imports once, and runs each script that it is given in a process of its own.
SERVER = """if True:
    import os, runpy, sys
    import fastai.vision.all
    import ltlearn.experiments.runner
    for line in sys.stdin:
        child = os.fork()
        if not child:
            script = line.strip()
            folder = os.path.dirname(script)
            os.chdir(folder)
            for name in ("stdout", "stderr"):
                file = os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT)
                os.dup2(file, getattr(sys, name).fileno())
            runpy.run_path(script, run_name="__main__")
            sys.exit()
        print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.fixture(scope="module")
def server():
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SERVER],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.stdin.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_runs_from_top_to_bottom(notebook, server, tmp_path):
    script = tmp_path / "notebook.py"
    script.write_text("\n\n".join("".join(c["source"]) for c in cells(notebook)))
    server.stdin.write(f"{script}\n")
    server.stdin.flush()
    status = int(server.stdout.readline())
    assert status == 0, (tmp_path / "stderr").read_text()
