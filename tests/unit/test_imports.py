import subprocess
import sys
from pathlib import Path

import pytest

TRIVIAL = Path(__file__).parents[1] / "projects" / "trivial"

WITHOUT_RAY = """
import sys
from importlib.abc import MetaPathFinder

class Refuse(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in {"ray", "fastapi"}:
            raise ModuleNotFoundError(f"no module named {name}")
        return None

sys.meta_path.insert(0, Refuse())

from wtb_core.testbench import TestBench

project, data_dir = sys.argv[1:]
spec = {
    "project": "trivial",
    "variants": [{"name": "plain"}],
    "cases": [{"input": {"value": 1}, "reference": 3}],
}
with TestBench.local(data_dir, projects=[project]) as bench:
    result = bench.run_batch(spec)
assert result.succeeded, result
print(result.executions[0]["output"], result.comparison["best_score"])
"""


def run_python(*arguments):
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize(
    "module", ["wtb_core", "wtb_core.testbench", "wtb_core.cli", "wtb_core.store.writer"]
)
def test_importing_the_core_loads_neither_ray_nor_fastapi(module):
    script = (
        f"import sys, {module}; "
        "print([name for name in sys.modules if name.split('.')[0] in {'ray', 'fastapi'}])"
    )

    done = run_python("-c", script)

    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_the_local_bench_runs_a_batch_where_ray_is_not_importable(tmp_path):
    done = run_python("-c", WITHOUT_RAY, str(TRIVIAL / "project.yaml"), str(tmp_path / "data"))

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "{'value': 3} 1.0\n"
