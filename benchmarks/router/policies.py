"""The policies that the router is measured under: the same route in each mode, guard and log fully on.

Teacher and student are the same upstream, as two backends, so that nothing but the router differs.
"""

MODES = ("teacher", "dark_launch", "dark_launch_lorax", "canary", "canary_lorax", "hybrid")
"""`…_lorax`: the student answers in LoRAX's native dialect; without it, as an OpenAI-style server."""

_LORAX_STUDENT = """\
      backend: lorax
      adapter: tickets
      version: 3
      prompt: "{input}\\nanswer:"
      max_input_chars: 1200
"""
_OPENAI_STUDENT = """\
      backend: students
      adapter: tickets
      version: 3
"""
_POLICY = """\
version: 1

backends:
  teacher: {{kind: openai, base_url: "{upstream}/v1", max_concurrency: 1024, price: {{input: 2.50, output: 10.00}}}}
  students: {{kind: openai, base_url: "{upstream}/v1", max_concurrency: 1024}}
  lorax: {{kind: lorax, base_url: "{upstream}", max_concurrency: 1024}}

routes:
  tickets:
    match: {{model: bench-model}}
    teacher: {{backend: teacher}}
    student:
{student}    mode: {mode}
    answer:
      kind: json
      schema:
        type: object
        required: [label]
        properties: {{label: {{enum: [refund_request, bug_report, how_to]}}, reason: {{type: string}}}}
      compare: {{fields: [label]}}
    guard: {{rules: [not_empty, not_truncated, schema, not_refusal, {{max_chars: 2000}}]}}
    dark_launch: {{share: 100%}}
    canary: {{steps: [50%, 100%], sticky: request, audit: 10%}}
    hybrid:
      easy_if:
        max_prompt_tokens: 2000
        languages: [en]
        not_matching: ['(?i)\\b(lawsuit|lawyer|court)\\b']
        no_tools: true
{cascade}
default: {{teacher: {{backend: teacher}}}}
"""
_CASCADE = "      cascade: {min_confidence: 0.8}\n"


def policy_text(mode: str, upstream: str) -> str:
    """The policy file of one of `MODES`; `upstream` is the upstream's address without a path."""
    with_lorax = mode == "hybrid" or mode.endswith("_lorax")
    return _POLICY.format(
        upstream=upstream,
        mode=mode.removesuffix("_lorax"),
        student=_LORAX_STUDENT if with_lorax else _OPENAI_STUDENT,
        cascade=_CASCADE if mode == "hybrid" else "",
    )
