#!/bin/sh
# A nightly run for cron: a new release, its report, and the removal of old releases.
#
#   nightly.sh FOLDER        the folder with predictions.toml and .venv
#
# All output goes to FOLDER/logs. Only what a person has to look at is printed, for cron to mail. The exit code is that
# of `predictions run`. No flock is needed: a run holds a lease in HBase, and a second run of the same name exits with 3.

cd "$1" || exit 2
mkdir -p logs
find logs -name '*.log' -mtime +30 -delete
log=logs/$(date -u +%Y%m%dT%H%M%SZ).log

predictions() { .venv/bin/predictions "$@" >> "$log" 2>&1 < /dev/null; }

predictions run
code=$?
if [ $code -eq 4 ] || [ $code -eq 6 ]; then  # a service or the job failed, which may pass: try once more
    sleep "${RETRY_SECONDS:-600}"
    predictions run
    code=$?
fi

case $code in
    0 | 1) problem= ;;  # 1: some records failed, but no more than gates.max_failed
    2) problem="settings or data are wrong" ;;
    3) problem="refused by a gate (see reports), or another run is active" ;;
    4) problem="a service cannot be reached" ;;
    5) problem="HBase does not have what was written" ;;
    *) problem="the run failed" ;;
esac
case $code in
    [013]) predictions report --output reports || problem=${problem:-"no report"} ;;
esac
case $code in
    [01]) predictions releases --clean || problem=${problem:-"old releases could not be removed"} ;;
esac

if [ -n "$problem" ]; then
    echo "predictions: $problem; \`predictions run\` exited with $code. The end of $PWD/$log:"
    tail -n 20 "$log"
fi
exit $code
