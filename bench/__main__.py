"""`python -m bench` lists the benchmarks, `python -m bench NAME` runs one. It must not know what they measure."""

import ast
import runpy
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
NOT_BENCHMARKS = {"__init__", "__main__", "report"}


def main() -> None:
    """List, or run the one that is named, with the arguments behind its name."""
    files = {path.stem: path for path in FOLDER.glob("*.py") if path.stem not in NOT_BENCHMARKS}
    packages = {path.parent.name: path.with_name("__init__.py") for path in FOLDER.glob("*/__main__.py")}
    found = dict(sorted((files | packages).items()))
    if len(sys.argv) == 1:
        for name, path in found.items():
            purpose = (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()[0]
            print(f"  make bench NAME={name:8} {purpose}")
        return
    name = sys.argv.pop(1)
    if name not in found:
        sys.exit(f"bench: there is no benchmark {name!r}; there are: {', '.join(found)}")
    runpy.run_module(f"bench.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
