"""A configuration with every stage and key, for `graduate train curate example`: what people start from."""

EXAMPLE = """\
# Stages run in this order; a stage that is left out does not run. Only train rows ever change.
seed: 0
# Where users and finish reasons of rows are read: traffic folders, and files that the dataset was built from.
records: [.graduate/traffic]
columns: {input: text, id: id, user: user} # names in those files, where they are CSV or JSON Lines of our own form

rules:                                     # a row goes by the first rule that it breaks; --dry-run counts each apart
  - empty                                  # blank input or answer
  - refusal                                # the answer declines
  - truncated                              # finish_reason length
  - json                                   # the answer is JSON and keeps the route's schema
  - {id: too-long, max_chars: 4000}        # of: input (default) | answer | both
  - {id: too-short, min_chars: 3}
  - {id: language, language: [en, de]}     # what cannot be told stays
  - {id: tests, deny: '(?i)\\btest (ticket|please ignore)\\b'}
  # - {id: form, allow: '^Subject:'}
  - {id: personal, pii: [email, phone, credit_card]}

duplicates:
  exact: true
  near: 0.8                                # Jaccard of 5-character shingles; near_duplicates.png shows what moving it does
  conflicts: keep                          # near, but with different answers: keep | drop

semantic: {min_cosine: 0.85, action: flag} # other words, same answer, numbers and negations: flag | drop; fetches an encoder by pip

gold: {errors: replace}                    # where the teacher is wrong by gold: replace | drop | teacher

# votes: {files: [votes.jsonl], min_agreement: 0.6, use: filter}     # filter | weight; from `train label --samples`

suspects: {action: flag, max_share: 0.1}   # labels that the other rows do not support: flag | drop | weight

# rank: {files: [judged.jsonl], drop_share: 10%, min_agreement: 0.3}  # a judge's `score` of a sample; the rest is predicted

power_users: {by: user, max_share: 5%, how: drop}    # by: user | template; max_rows or max_share; how: drop | weight

balance:
  target: uniform                          # or a ratio a class, such as {spam: 1, ham: 3}
  strength: 0.5                            # 0 leaves the mix, 1 reaches the target; --effect sweeps it on validation
  how: undersample                         # undersample | oversample | weight
  max_repeat: 4
"""
