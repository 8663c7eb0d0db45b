import io

from predictions import counters


def test_counters_as_streaming_takes_them():
    stderr = io.StringIO()
    counters.report(stderr, read=3, failed=0)
    assert stderr.getvalue() == "reporter:counter:predictions,read,3\nreporter:counter:predictions,failed,0\n"


def test_counters_from_hadoops_report():
    report = """
2026-11-22 17:00:00,000 INFO  [main] mapreduce.Job: Counters: 57
\tMap-Reduce Framework
\t\tMap input records=336776
\tpredictions
\t\tduplicates=0
\t\tread=336776
\t\tscored=336775
\tFile Output Format Counters
\t\tBytes Written=19384534
"""
    assert counters.parse_report(report) == {"duplicates": 0, "read": 336776, "scored": 336775}
    assert counters.parse_report("no report") == {}
