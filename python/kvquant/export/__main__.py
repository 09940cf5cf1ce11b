"""`kvquant export DIR --to wandb|mlflow -o FOLDER` and `python -m kvquant.export`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from kvquant.export.load import load_runs


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="kvquant export",
        description="Results of a folder as Weights & Biases offline runs or an MLflow file store.",
        epilog="DIR holds what sweep wrote, and what other commands wrote with --json. "
        "A result that FOLDER has already is left alone.",
    )
    parser.add_argument("dir", metavar="DIR", type=Path, help="folder of results")
    parser.add_argument("--to", choices=["wandb", "mlflow"], required=True)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the store")
    parser.add_argument("--project", default="kvquant", help="project or experiment (kvquant)")
    options = parser.parse_args(arguments)
    try:
        runs, passed_over = load_runs(options.dir)
        for line in passed_over:
            print(f"kvquant: warning: {line}", file=sys.stderr)
        from kvquant.export.stores import export_mlflow, export_wandb

        export = {"wandb": export_wandb, "mlflow": export_mlflow}[options.to]
        count = export(runs, options.output, options.project)
    except ModuleNotFoundError as error:
        print(f"kvquant: export needs {error.name}: pip install '.[{options.to}]'", file=sys.stderr)
        return 2
    except (OSError, ValueError) as error:
        print(f"kvquant: {error}", file=sys.stderr)
        return 2
    print(f"{options.output}: {count} new runs, {len(runs) - count} were there")
    return 0


if __name__ == "__main__":
    sys.exit(main())
