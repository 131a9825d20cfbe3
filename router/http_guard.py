"""The guard rule `http`: an outside service says whether a student's answer may go out.

It gets `{"request": <the body>, "answer": "<text>"}` by POST and answers `{"ok": true}` or `{"ok": false, "detail": "…"}`.
Silence, an error status or anything else within the deadline counts as a no: an unchecked answer is not sent.
"""

from collections.abc import Sequence

import httpx
import msgspec

from router.answer_spec import GuardRule
from router.guard import PASSED, Verdict
from router.records import Answer
from router.wire import RequestView

DEADLINE_SECONDS = 1.0


async def ask(rules: Sequence[GuardRule], request: RequestView, answer: Answer) -> Verdict:
    """The first `http` rule that says no."""
    body = msgspec.json.encode({"request": msgspec.Raw(request.body), "answer": answer.text})
    async with httpx.AsyncClient(timeout=DEADLINE_SECONDS, trust_env=False) as client:
        for rule in rules:
            if rule.rule != "http":
                continue
            try:
                reply = await client.post(
                    str(rule.value), content=body, headers={"content-type": "application/json"}
                )
                said = reply.json() if reply.status_code == 200 else {}
            except (httpx.HTTPError, ValueError) as why:
                return Verdict(False, "http", f"{rule.value}: {why or type(why).__name__}")
            if not (isinstance(said, dict) and said.get("ok") is True):
                detail = said.get("detail", "") if isinstance(said, dict) else ""
                return Verdict(False, "http", str(detail))
    return PASSED
