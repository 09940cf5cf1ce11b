"""`kvquant COMMAND` and `python -m kvquant COMMAND`: the program, which lies beside this file."""

from __future__ import annotations

import os
import sys
from pathlib import Path

PROGRAM = Path(__file__).resolve().parent / "bin" / "kvquant"


def find_program() -> Path:
    """The program of this installation, or of the build folder that links to this file."""
    for folder in (Path(__file__).parent, Path(__file__).resolve().parent):
        program = folder / "bin" / "kvquant"
        if program.is_file():
            return program
    raise FileNotFoundError(f"the program is missing: {PROGRAM}")


def main() -> int:
    if sys.argv[1:2] == ["report"]:  # with this interpreter and its packages
        from kvquant.report.__main__ import main as report

        return report(sys.argv[2:])
    if sys.argv[1:2] == ["export"]:
        from kvquant.export.__main__ import main as export

        return export(sys.argv[2:])
    try:
        program = find_program()
        os.execv(program, [str(program), *sys.argv[1:]])
    except OSError as error:
        print(f"kvquant: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
