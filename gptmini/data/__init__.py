"""Text to tokens to batches; each file takes what the one above it returns.

find_files.py   a path, a folder or a glob -> files
documents.py    files -> documents         (python_docs.py, datasets.py: corpora with a name)
corpus.py       documents -> chunks of text, as often as needed
dedup.py        chunks -> chunks without the paragraphs of another text
tokenizers/     chunks <-> token ids
prepare.py      a corpus -> train.bin and val.bin, once
token_files.py  those files as streams, checked as they are read (token_cache.py: found again)
batching.py     streams -> inputs and targets (B, T)        (shuffle.py: in which order)
"""
