"""Check the nodes of one tree, before a library in C++ walks it."""

from typing import Any

import numpy as np

from predictions.scoring.checks.errors import require

Array = np.ndarray[Any, Any]


def check_children(children: Array, nodes: int) -> None:
    """Require that a walk from node 0 to a leaf stays within the nodes and ends.

    It ends if no node has two parents and the root has none: a circle that the root leads to would have a node with
    two.

    Args:
        children: indices of the children of all nodes that have some, in any order.
        nodes: number of nodes.

    Raises:
        ContentsError: a child is out of range or has two parents.
    """
    require(((children >= 1) & (children < nodes)).all(), "a child is not one of the tree's nodes")
    require((np.bincount(children, minlength=nodes) <= 1).all(), "a node has two parents")


def check_range(values: Array, limit: int, what: str) -> None:
    """Require that integers are from 0 to below a limit."""
    require(((values >= 0) & (values < limit)).all(), f"{what} is out of range")
