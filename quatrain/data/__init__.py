"""Data: sources, formats, typed records, corpora, checks, the example cache, token files and batches.

Nothing is imported here, so that `import quatrain` stays light. Main modules: `quatrain.data.corpus` (typed records of
any source), `quatrain.data.documents` (plain text), `quatrain.data.token_file`, `quatrain.data.batches`,
`quatrain.data.checking`.
"""
