"""A small trainer that shows the losses at work on real text.

Everything a well-kept library offers is that library's: sentence-transformers does the loop,
tokenizers the tokenizer, bm25s the lexical baseline. Nothing here is imported by the losses.
"""
