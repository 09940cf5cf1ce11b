"""`kvquant report DIR` and `python -m kvquant.report DIR`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="kvquant report",
        description="Figures (PNG, PDF), tables (Markdown, LaTeX) and a page of a sweep's results.",
        epilog="DIR holds what sweep wrote, and what perplexity and eval wrote with --json.",
    )
    parser.add_argument("dir", metavar="DIR", type=Path, help="folder of results")
    parser.add_argument(
        "-o", "--output", type=Path, help="folder of the report (default: DIR/report)"
    )
    parser.add_argument("--model", help="the model, where the folder has results of several")
    options = parser.parse_args(arguments)
    try:
        from kvquant.report import load_results, write_report
    except ModuleNotFoundError as error:
        print(f"kvquant: report needs {error.name}: pip install matplotlib", file=sys.stderr)
        return 2
    try:
        results = load_results(options.dir, options.model)
        for line in results.passed_over:
            print(f"kvquant: warning: {line}", file=sys.stderr)
        summary = write_report(results, options.output or options.dir / "report")
    except (OSError, ValueError) as error:
        print(f"kvquant: {error}", file=sys.stderr)
        return 2
    print(summary)
    return 0


if __name__ == "__main__":
    sys.exit(main())
