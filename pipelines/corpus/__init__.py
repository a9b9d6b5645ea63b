"""Corpora: files to records, records to tokenized shards, and text to entities at scale, with Ray Data."""
