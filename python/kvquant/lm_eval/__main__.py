"""`python -m kvquant.lm_eval ARGUMENTS`: the harness's own program, with kvquant among its models.

`lm_eval ARGUMENTS` is the same where kvquant was installed with pip.
"""

from lm_eval.__main__ import cli_evaluate

import kvquant.lm_eval  # noqa: F401  (registers the model)

if __name__ == "__main__":
    cli_evaluate()
