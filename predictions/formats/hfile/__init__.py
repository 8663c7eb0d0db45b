"""HFiles, HBase's own file format, version 3: write them from sorted rows, and read them back.

    data blocks, leaf index blocks between them | inner index | root index | meta index | file info | trailer

If the index is small, the root index points to the data blocks themselves, and there are no leaf index blocks. The meta
index is empty. There are no tags, no sequence numbers, and no Bloom filter: a release has one file per region, so a
filter would have no second file to skip. The format is the one that HBase's reference guide calls "HFile format,
version 3" and that HBase's reader reads.
"""
