"""Write the page of the public Python surface: `python -m scripts.api_page [FOLDER]`, build/api.

pdoc makes it of the docstrings. A warning of pdoc (a type that cannot be read, a name that is not
there) is an error: a page that is wrong in one place is not written.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pdoc

# What others script against; the modules behind the names are no part of it.
MODULES = ("moge_bench", "moge_bench.integrations.transformers", "moge_bench.moe.insert",
           "moge_bench.moe.upcycle")  # fmt: skip


def write_api_page(folder: Path) -> list[Path]:
    """Write index.html and a page for each of MODULES to ``folder``; return the pages."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        pdoc.render.configure(docformat="google", show_source=False)
        others = [f"!{name}\\..*" for name in MODULES[:1]]
        pdoc.pdoc(MODULES[0], *others, *MODULES[1:], output_directory=folder)
    return [folder / f"{name.replace('.', '/')}.html" for name in MODULES]


if __name__ == "__main__":
    for page in write_api_page(Path(sys.argv[1] if len(sys.argv) > 1 else "build/api")):
        print(f"written: {page}")
