#!/bin/sh
# Usage: gate_pull_request.sh BASE FOLDER. The performance gate as CI runs it: HEAD against BASE, the report
# in FOLDER, the verdict in FOLDER/summary.md and, in CI, as the job's summary. Exits as the gate does:
# 0 not slower, 1 slower or not to be told, 2 an error. MOGE_BENCH names another command than .venv's.
set -u
base=$1 folder=$2
mkdir -p "$folder"
rm -f "$folder/summary.md"
"${MOGE_BENCH:-.venv/bin/moge-bench}" perf gate --base "$base" --head HEAD --no-record --output "$folder" \
    --summary "$folder/summary.md"
status=$?
[ -f "$folder/summary.md" ] ||
    printf '## Performance gate: no verdict\n\nIt ended before it had one (status %s): see the log.\n' "$status" \
        >"$folder/summary.md"
[ -z "${GITHUB_STEP_SUMMARY-}" ] || cat "$folder/summary.md" >>"$GITHUB_STEP_SUMMARY"
exit "$status"
