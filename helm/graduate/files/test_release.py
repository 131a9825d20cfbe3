"""What `helm test` asks of a release: health, readiness, one chat completion, one scrape. Standard library only.

Reads ROUTER, ADMIN and MODEL, and KEY when callers need one. Ends with status 1 at the first thing that is wrong.
"""

import json
import os
import sys
import urllib.error
import urllib.request

ROUTER, ADMIN = os.environ["ROUTER"], os.environ["ADMIN"]


def ask(url: str, body: dict | None = None) -> tuple[int, str]:
    """Status and text of one request."""
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("KEY"):
        headers["Authorization"] = f"Bearer {key}"
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(url, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as why:
        return why.code, why.read().decode(errors="replace")


def demand(holds: bool, what: str, found: object) -> None:
    """Say what was looked at, and end when it is wrong."""
    sys.stdout.write(f"{'ok  ' if holds else 'FAIL'} {what}: {str(found)[:300]}\n")
    if not holds:
        sys.exit(1)


status, text = ask(f"{ROUTER}/health")
demand(status == 200, "the router is alive", status)
status, text = ask(f"{ADMIN}/ready")
demand(status == 200 and json.loads(text)["ready"], "a policy is in force", text)
chat = {
    "model": os.environ["MODEL"],
    "messages": [{"role": "user", "content": "Say ok."}],
    "max_tokens": 5,
}
status, text = ask(f"{ROUTER}/v1/chat/completions", chat)
if status in (401, 403) and not os.environ.get("KEY"):
    demand(True, "callers need a key, and none is given to this test", status)
else:
    demand(status == 200 and json.loads(text)["choices"], "a chat completion", f"{status} {text}")
status, text = ask(f"{ADMIN}/metrics")
demand(status == 200 and "graduate_router_policy_info" in text, "metrics", status)
