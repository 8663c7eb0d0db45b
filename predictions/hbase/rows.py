"""Rows of HBase, which thriftpy2 fills in itself while it reads a reply.

thriftpy2 makes an object for each struct of a reply, and sets its fields. These objects are smaller than its own, are
made without a call of `__init__`, and need not be converted to anything else afterwards.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import happybase  # noqa: F401  makes the module Hbase_thrift
from Hbase_thrift import Hbase, TCell
from thriftpy2.thrift import TType


@dataclass(slots=True)
class Cell:
    """A cell's value and its timestamp, in milliseconds since 1970."""

    thrift_spec: ClassVar[dict[int, Any]] = TCell.thrift_spec

    value: bytes
    timestamp: int


@dataclass(slots=True)
class Row:
    """A row: its key and its cells by column (`FAMILY:QUALIFIER`)."""

    thrift_spec: ClassVar[dict[int, Any]] = {
        1: (TType.BINARY, "key", False),
        2: (TType.MAP, "cells", (TType.BINARY, (TType.STRUCT, partial(object.__new__, Cell))), False),
    }

    key: bytes
    cells: dict[bytes, Cell]


_ROWS = (TType.LIST, "success", (TType.STRUCT, partial(object.__new__, Row)), False)


def _result(call: str) -> type:
    result = getattr(Hbase, f"{call}_result")
    return type(call, (result,), {"thrift_spec": {**result.thrift_spec, 0: _ROWS}})


# HBase's Thrift service; the calls whose reply has rows return them as `Row`.
Service = type(
    "Service",
    (Hbase,),
    {f"{call}_result": _result(call) for call in ("getRows", "getRowsWithColumns", "scannerGetList")},
)
