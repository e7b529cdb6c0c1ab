"""Line 1, read: text becomes tokens. Sources, files, tokenizers, chats and token files.

Nothing is imported here, so that `import quatrain` stays light; import the module of what you need:
`quatrain.tokenizers.tokenizer`, `quatrain.tokenizers.chat`, `quatrain.data.catalog`, `quatrain.data.documents`,
`quatrain.data.token_file`, `quatrain.core.atomic`.
"""
