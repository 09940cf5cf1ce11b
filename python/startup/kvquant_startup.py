"""Lets `lm_eval --model kvquant` find kvquant, which it has no discovery for.

kvquant.pth imports this at every start of Python, so it does next to nothing: when lm_eval.models
is imported, it adds a name to the harness's registry, behind which kvquant.lm_eval is imported
once somebody asks for it.
"""

import sys


class _WaitForHarness:
    @staticmethod
    def find_spec(name, path=None, target=None):  # type: ignore[no-untyped-def]
        """Of lm_eval.models, whose loading registers the model; None of all others."""
        if name != "lm_eval.models":
            return None
        sys.meta_path.remove(_WaitForHarness)
        from importlib.util import find_spec

        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def exec_module(module):  # type: ignore[no-untyped-def]
                load(module)
                _register()

            spec.loader.exec_module = exec_module
        return spec


def _register() -> None:
    try:
        from lm_eval.api.registry import model_registry
    except ImportError:  # a harness of another age, which has its own ways
        return
    model_registry.register("kvquant", target="kvquant.lm_eval.model:KvquantLM")


sys.meta_path.insert(0, _WaitForHarness)
