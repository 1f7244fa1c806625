"""The first code in every process that runs user code: `python -I -B boot.py MODE SESSION LEASH`.

The interpreter may be another virtual environment, with its own langgraph and without this
package. Only the package's own directory is made importable; the site-packages around it stay out
of `sys.path`.
"""

import importlib.util
import socket
import sys
from pathlib import Path
from typing import NoReturn


def _make_package_importable() -> None:
    directory = Path(__file__).resolve().parents[1]
    spec = importlib.util.spec_from_file_location(
        directory.name, directory / "__init__.py", submodule_search_locations=[str(directory)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{directory} is not a package")
    package = importlib.util.module_from_spec(spec)
    sys.modules[directory.name] = package
    spec.loader.exec_module(package)


def main() -> None:
    mode, session, leash = sys.argv[1:]
    sys.argv[:] = [""]
    _make_package_importable()

    from wtb_core.sandbox import init

    def run() -> NoReturn:
        # Here langgraph is imported: in the forked process, while its parent stays lean.
        if mode == "zygote":
            from wtb_core.sandbox import zygote

            zygote.serve(int(session))
        from wtb_core.sandbox import child

        child.main(socket.socket(fileno=int(session)), None)

    init.supervise(socket.socket(fileno=int(leash)), run)


if __name__ == "__main__":
    main()
