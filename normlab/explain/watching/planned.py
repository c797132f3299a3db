"""What `normlab lint` says of a model and the plan of somebody's trainer, in its log."""

from __future__ import annotations

import logging
from typing import Any

from torch import nn

from normlab.check.lint import Plan, Warning_, lint
from normlab.errors import UsageError

logger = logging.getLogger("normlab")


def warn_of(model: nn.Module, plan: Plan, optimizer: Any = None, size: Any = None) -> list[Warning_]:
    """Lint the plan, log a warning for each finding, and return them; a model that cannot be run alone has none."""
    try:
        found = lint(model, plan, optimizer=optimizer, size=size)
    except UsageError as error:
        logger.info("the plan was not checked: %s", error)
        return []
    for warning in found:
        logger.warning("%s", warning.text(case=False))
    return found


def last_batch(dataset: Any, size: int, dropped: bool) -> int | None:
    """The samples of an epoch's last batch where it is a smaller one that is not dropped, or None."""
    rest = len(dataset) % size if hasattr(dataset, "__len__") else 0
    return None if dropped or not rest else rest
