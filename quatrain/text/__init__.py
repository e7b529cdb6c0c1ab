"""Line 1, read: text becomes tokens. Sources, files, tokenizers, chats and token files.

Nothing is imported here, so that `import quatrain` stays light; import the module of what you need:
`quatrain.text.tokenizer`, `quatrain.text.chat`, `quatrain.text.catalog`, `quatrain.text.files`,
`quatrain.text.tokenfile`, `quatrain.atomic`.
"""
