#!/bin/sh
# Usage: keep_history.sh BRANCH. Measures HEAD against its parent and what the gate does not judge, appends both
# to history.jsonl on the data branch BRANCH of origin, redraws history.html there, and pushes them. The first
# time it makes the branch, without a common ancestor. A slower HEAD is recorded like any other and fails at the
# end, with 1; 2 is an error, of what the gate does not judge too. MOGE_BENCH names another command than .venv's.
set -eu
branch=$1
bench=${MOGE_BENCH:-.venv/bin/moge-bench}
data=$(mktemp -d)/data
trap 'git worktree remove --force "$data"' EXIT
if git fetch --quiet origin "+refs/heads/$branch:refs/remotes/origin/$branch" 2>/dev/null; then
    git worktree add --quiet --detach "$data" "origin/$branch"
else
    git worktree add --quiet --detach "$data"
    git -C "$data" checkout --quiet --orphan "$branch"
    git -C "$data" rm -rfq .
fi
slower=0
"$bench" perf gate --base HEAD~1 --head HEAD --output "$data" --summary "$data/summary.md" || slower=$?
[ -f "$data/summary.md" ] || exit 2 # the gate ended without a verdict: there is nothing to keep
[ -z "${GITHUB_STEP_SUMMARY-}" ] || cat "$data/summary.md" >>"$GITHUB_STEP_SUMMARY"
failed=0
"$bench" perf series --wheel --output "$data" || failed=2 # what the gate found is kept all the same
"$bench" perf history --output "$data"
git -C "$data" add history.jsonl history.html
git -C "$data" -c user.name=performance-history -c user.email=performance-history@users.noreply.github.com \
    commit --quiet -m "$(git rev-parse HEAD)"
git -C "$data" push --quiet origin "HEAD:refs/heads/$branch"
[ "$slower" -ne 0 ] || slower=$failed
exit "$slower"
