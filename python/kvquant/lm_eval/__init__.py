"""kvquant as a model of the lm-evaluation-harness: `lm_eval --model kvquant` (docs/lm_eval.md).

The harness has no discovery of models of other packages: kvquant_startup.py registers this one
when it is imported; `python -m kvquant.lm_eval` does so where that file isn't installed.
"""

from importlib.util import find_spec as _find_spec

if _find_spec("lm_eval") is None:
    raise ImportError("kvquant.lm_eval needs lm-eval: pip install 'kvquant[lm-eval]'")

from kvquant.lm_eval.model import KvquantLM

__all__ = ["KvquantLM"]
