import os
import pwd
import subprocess
import sys

SHOW = """
import json
import sys
from wtb_core.sandbox.root import find_readable

print(json.dumps(find_readable()))
"""


def test_a_home_directory_is_not_shown_though_the_interpreter_s_path_names_it(tmp_path):
    """Nor what is above it; the process's own HOME is not the account's."""
    account = pwd.getpwuid(os.getuid()).pw_dir
    library = tmp_path / "library"
    library.mkdir()
    path = os.pathsep.join([account, "/", str(library), *sys.path])
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": path}

    done = subprocess.run(
        [sys.executable, "-c", SHOW], env=environment, capture_output=True, check=True, timeout=60
    )
    shown = done.stdout.decode()

    assert f'"{library}"' in shown
    assert '"/usr"' in shown
    assert not {f'"{account}"', '"/"', f'"{tmp_path}"'} & set(shown.strip("[]\n").split(", "))
