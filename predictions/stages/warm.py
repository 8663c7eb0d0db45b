"""Warm a release before it is served: its blocks are in no cache yet, and each lookup would wait for HDFS."""

import time

from predictions.formats.row_key import PREFIX_DIGITS
from predictions.hbase.connection import Connection

SECONDS = 5.0  # at most; of a larger release, lookups warm the rest
ROWS = 300  # for each key that is read; a block has some 400 of a model with two cells
REQUEST_KEYS = 64


def warm(connection: Connection, table: str, rows: int) -> None:
    """Read a sample of a release's table, so that the first lookups find its blocks in HBase's cache.

    The keys are spread evenly over the regions. They are bare prefixes, which no row has as its key: HBase reads the
    block in which each would be, and returns nothing. (A file that HBase wrote itself, after puts, has a Bloom filter,
    which answers instead; HFiles of this package have none.) The keys of each request
    are spread over all regions, so the first ones read the indexes of all, and tell the Thrift server where they are.

    Args:
        connection: to HBase.
        table: the release's table.
        rows: its number of rows.

    Raises:
        ServiceError: HBase does not answer.
    """
    end = time.monotonic() + SECONDS
    prefixes = 16**PREFIX_DIGITS
    requests = min(-(-rows // ROWS), prefixes) // REQUEST_KEYS + 1
    count = requests * REQUEST_KEYS
    keys = [b"%0*x" % (PREFIX_DIGITS, number * prefixes // count) for number in range(count)]
    for start in range(requests):
        connection.receive(connection.send_rows(table, keys[start::requests]))
        if time.monotonic() > end:
            return
