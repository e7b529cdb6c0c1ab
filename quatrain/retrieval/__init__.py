"""Finds passages in the user's documents and answers questions from them with citations that can be checked.

    index = build_index("notes/", "indexes/notes")
    index.search("How are embeddings pooled?", k=3)
    answer(index, "How are embeddings pooled?").text

A folder is read by `readers`, cut by `chunkers`, kept in a store of `stores`, ranked by BM25 and by the vectors of
`encoders`, and quoted by `answer`. Retrieval-augmented generation: Lewis et al. 2020 (arXiv 2005.11401).
"""
