"""Puts the gate's summary into the one comment of its pull request: python3 gate_comment.py FILE.

Runs in CI after a pull request's own run, with the right to comment, on the main branch's code; the
standard library and ``gh`` are all it needs. FILE comes from that run, so whoever opened the pull
request may have written it: it is kept to printable ASCII, can name, link, draw and embed nothing,
and is cut to what a comment holds. The pull request is the open one whose head GitHub says was run:
HEAD_OWNER, HEAD_BRANCH and HEAD_COMMIT, from the event. Also read: REPOSITORY, RUN_URL.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

MARK = "<!-- moge-bench performance gate -->"
MOST = 60_000  # characters: a comment holds 65,536
NOTHING = "## Performance gate: no verdict\n\nThe run left no summary: see its log."


BREAK = "&#8203;"  # a space of no width: what it parts is no link, mention or reference
INSTEAD = {
    "&": "&amp;", "<": "&lt;", "@": f"@{BREAK}", "#": f"#{BREAK}", "](": "] (", "]:": "] :",
    "][": "] [", "://": f":{BREAK}//", "www.": f"www{BREAK}.", "gh-": f"gh{BREAK}-",
    "$": f"${BREAK}", "```": "'''", "~~~": "'''",
}  # fmt: skip
RISKY = re.compile("|".join(map(re.escape, INSTEAD)), re.IGNORECASE)
HEADING = re.compile(rf"^(?:#{BREAK}){{2,4}} ", re.MULTILINE)


def harmless(text: str) -> str:
    """Return ``text`` with its tables and headings, but without links, images, HTML or mentions."""
    plain = re.sub(r"[^\n\x20-\x7e]", "?", text[: MOST + 1])
    plain = RISKY.sub(lambda found: INSTEAD[found[0].lower()], plain)
    plain = HEADING.sub(lambda found: found[0].replace(BREAK, ""), plain)
    if len(plain) <= MOST:
        return plain
    kept = plain[:MOST].rpartition("\n")[0] or plain[:MOST].rpartition("&")[0]  # none cut in two
    return f"{kept}\n\nThe rest is in the report."


def body(text: str, commit: str, url: str) -> str:
    """Return the comment: the mark by which it is found again, the summary, where it comes from."""
    return f"{MARK}\n{harmless(text)}\n\n<sub>{commit[:12]}, [run and report]({url})</sub>\n"


def gh(*arguments: str, data: dict[str, Any] | None = None) -> list[Any]:
    """Return the values that ``gh api`` answers, one a line."""
    done = subprocess.run(
        ["gh", "api", *arguments, *(["--input", "-"] if data else [])],
        input=json.dumps(data) if data else None, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"gate_comment: gh api {' '.join(arguments)} failed: {done.stderr.strip()}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.strip()]


def find_pull(repository: str, owner: str, branch: str, commit: str) -> int | None:
    """Return the number of the open pull request whose head is ``commit``, None if none is."""
    found = gh(
        "-X", "GET", f"repos/{repository}/pulls", "-f", "state=open",
        "-f", f"head={owner}:{branch}", "--jq", ".[] | {number, head: {sha: .head.sha}}",
    )  # fmt: skip
    return next((int(pull["number"]) for pull in found if pull["head"]["sha"] == commit), None)


def put(repository: str, number: int, text: str) -> str:
    """Update the comment that bears the mark and is a bot's, or add one; return what was done."""
    comments = f"repos/{repository}/issues/{number}/comments"
    select = ".[] | {id, body, type: .user.type}"
    for comment in gh("--paginate", comments, "--jq", select):
        if comment["body"].startswith(MARK) and comment["type"] == "Bot":
            gh("-X", "PATCH", f"repos/{repository}/issues/comments/{int(comment['id'])}",
               data={"body": text})  # fmt: skip
            return "updated"
    gh("-X", "POST", comments, data={"body": text})
    return "added"


def main() -> None:
    """Comment on the pull request that was run, if it is still at that commit."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    file, env = Path(sys.argv[1]), os.environ
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else NOTHING
    number = find_pull(env["REPOSITORY"], env["HEAD_OWNER"], env["HEAD_BRANCH"], env["HEAD_COMMIT"])
    if number is None:
        print("gate_comment: no open pull request is at this commit any more; nothing to say")
        return
    done = put(env["REPOSITORY"], number, body(text, env["HEAD_COMMIT"], env["RUN_URL"]))
    print(f"gate_comment: {done} on pull request {number}")


if __name__ == "__main__":
    main()
