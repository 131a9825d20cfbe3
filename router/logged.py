"""What the traffic log keeps of an exchange: the whole of it, redacted, or figures only, as the route's `log` says. Pure."""

import msgspec

from router import redact
from router.policy import Log
from router.records import NO_BODY, Answer, Record


def logged_answer(answer: Answer, rule: Log) -> Answer:
    """The answer as the log may keep it."""
    if not rule.text:
        return msgspec.structs.replace(answer, text=None, tool_calls=(), body=NO_BODY)
    if not rule.redact:
        return answer
    return msgspec.structs.replace(
        answer,
        text=redact.redact(answer.text, rule.redact) if answer.text else answer.text,
        tool_calls=tuple(
            msgspec.structs.replace(c, arguments=redact.redact(c.arguments, rule.redact))
            for c in answer.tool_calls
        ),
        body=_body(bytes(answer.body), rule) if answer.body else NO_BODY,
    )


def logged_record(record: Record, rule: Log) -> Record:
    """The record as the log may keep it."""
    if rule.text and not rule.redact:
        return record
    answers = tuple(logged_answer(answer, rule) for answer in record.answers)
    if not rule.redact:
        return msgspec.structs.replace(record, answers=answers, request=NO_BODY)
    return msgspec.structs.replace(
        record,
        answers=answers,
        request=_body(bytes(record.request), rule) if rule.text else NO_BODY,
        user=redact.redact(record.user, rule.redact) if record.user else record.user,
        metadata={k: redact.redact(v, rule.redact) for k, v in record.metadata.items()},
        headers={k: redact.redact(v, rule.redact) for k, v in record.headers.items()},
    )


def _body(body: bytes, rule: Log) -> msgspec.Raw:
    return msgspec.Raw(redact.redact_json(body, rule.redact) if rule.redact else body)
