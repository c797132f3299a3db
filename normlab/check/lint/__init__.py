"""Lint a model and a training plan for what normalization does to them.

from normlab.check.lint import Plan, lint
for warning in lint(model, Plan(batch_size=8, last_batch=1)):
    print(warning.text())
"""

from normlab.check.lint.plan import Plan, load_model
from normlab.check.lint.rules import RULES, Rule, Warning_, lint
from normlab.check.lint.trace import Input

__all__ = ["RULES", "Input", "Plan", "Rule", "Warning_", "lint", "load_model"]
