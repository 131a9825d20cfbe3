"""Over HTTP to others: may the canary move (asked before), and it has moved (told afterwards). Knows no rule and no table.

A body is JSON; the secret of a webhook is sent in the header `x-graduate-secret`, and comes from the environment. The id of
what is told is in `x-graduate-id` and stays the same when it is told again, so a receiver can drop the second one.
"""

import datetime
import os
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from router.policy import Notify, Webhook

SECRET_HEADER, ID_HEADER = "x-graduate-secret", "x-graduate-id"
ALERT_SECONDS = 3600.0
"""So long an alert stands at the Alertmanager after the move that it tells of."""
PAGES = ("rollback",)
TICKETS = ("hold", "inconclusive", "wait")


def confirm(hooks: Sequence[Webhook], body: Mapping[str, Any], key: str) -> str | None:
    """None when all hooks say yes (2xx), else which one did not and what it said."""
    for hook in hooks:
        refused = _post(hook, hook.url, body, key)
        if refused is not None:
            return f"{hook.url} did not confirm: {refused}"
    return None


def tell(hook: Notify, body: Mapping[str, Any], key: str, now: float) -> str | None:
    """None when the hook has taken it (2xx), else why not."""
    if hook.kind == "alertmanager":
        url = f"{hook.url.rstrip('/')}/api/v2/alerts"
        return _post(hook, url, [alert(body, now)], key)
    return _post(hook, hook.url, body, key)


def alert(body: Mapping[str, Any], now: float) -> dict[str, Any]:
    """A move as an alert of the Alertmanager's API v2; it ends by itself an hour from `now`."""
    action = str(body["action"])
    severity = "page" if action in PAGES else "ticket" if action in TICKETS else "info"
    labels = {
        "alertname": "GraduateRolloutMoved", "route": body["route"], "action": action,
        "severity": severity, "event": body["key"],
    }  # fmt: skip
    summary = (
        f"Route {body['route']}: {action} by {body['actor']}, "
        f"student's share {100 * body['share']:.3g} %, {body['state']}"
    )
    return {
        "labels": labels,
        "annotations": {"summary": summary, "description": str(body["evidence"])},
        "startsAt": _stamp(body["at"]),
        "endsAt": _stamp(now + ALERT_SECONDS),
    }


def _stamp(at: float) -> str:
    return datetime.datetime.fromtimestamp(at, datetime.UTC).isoformat(timespec="milliseconds")


def _post(hook: Webhook, url: str, body: Any, key: str) -> str | None:
    headers = {ID_HEADER: key}
    if hook.secret_env is not None:
        secret = os.environ.get(hook.secret_env)
        if not secret:
            return f"environment variable {hook.secret_env} (secret_env) is not set"
        headers[SECRET_HEADER] = secret
    try:
        with httpx.stream("POST", url, json=body, headers=headers, timeout=hook.timeout) as reply:
            if reply.is_success:
                return None
            said = next(reply.iter_text(), "")[:200]  # not all of it: it may have no end
            return f"HTTP {reply.status_code}: {said}".rstrip(": ")
    except httpx.TimeoutException:
        return f"no answer within {hook.timeout:g} s"
    except (httpx.HTTPError, ValueError) as why:
        return f"{type(why).__name__}: {why}"
