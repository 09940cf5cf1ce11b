"""Prints the stub of the extension that is on the path: python/kvquant/_core.pyi."""

from __future__ import annotations

import sys

import kvquant._core
from nanobind.stubgen import StubGen

HEADER = '"""The types of kvquant._core; `make stubs` writes this file."""\n\n'
# What nanobind writes, and what mypy asks for.
REPLACED = {
    '"""The engine of kvquant; use it through the package kvquant."""\n\n': "",
    "import kvquant._types\n": "from kvquant._types import Array, ArrayT, Generation, Tokens\n",
    "kvquant._types.": "",
    "kvquant._core.": "",
    "os.PathLike": "os.PathLike[str]",
    "-> dict:": "-> dict[str, Any]:",
    "-> list[dict]:": "-> list[dict[str, Any]]:",
    "-> tuple:": "-> tuple[Any, ...]:",
    "-> numpy.ndarray:": "-> numpy.ndarray[Any, Any]:",
}


def make_stub() -> str:
    generator = StubGen(module=kvquant._core)
    generator.put(kvquant._core)
    text = str(generator.get())
    for found, replacement in REPLACED.items():
        text = text.replace(found, replacement)
    return HEADER + text


if __name__ == "__main__":
    sys.stdout.write(make_stub())
