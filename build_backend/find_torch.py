"""Print the include folder of the torch >= 2.10 that this interpreter has, without importing it.

Run with ``python -I``: pip isolates a build through PYTHONPATH, which -I ignores, so the answer is the
torch of the environment that will use the package and not the one of the build's own environment.
"""

import importlib.metadata
import importlib.util


def torch_include() -> str:
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return ""
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        version = "2.10"
    if tuple(int(part) for part in version.split(".")[:2]) < (2, 10):
        return ""
    return str(spec.submodule_search_locations[0]) + "/include"


if __name__ == "__main__":
    print(torch_include())
