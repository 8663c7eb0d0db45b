"""Machine-learning predictions for every record of a database, made by MapReduce and served from HBase."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from predictions.lookup.client import Answer, Client, LabelAnswer

__all__ = ["Answer", "Client", "LabelAnswer"]


def __getattr__(name: str) -> Any:
    # Imported on first use: the tasks of a job have neither HappyBase nor a database driver.
    if name in __all__:
        from predictions.lookup import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
