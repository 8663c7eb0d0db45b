"""HFiles, version 3: HBase's own files, written from rows in order, and read back.

    data blocks, leaf index blocks between them | inner index | root index | meta index | file info | trailer

Where the index is small, the root has the data blocks themselves, and there are no leaves. The meta index is empty.
There are no tags, no sequence numbers and no Bloom filter: a release has one file a region, so that a lookup has no
second one to skip. The format is what HBase's reference guide calls "HFile format, version 3", and its reader reads.
"""
