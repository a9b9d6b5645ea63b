"""What is told of shards, made by hand."""

from pipelines.corpus.shards import ShardsInfo


def make_info(**facts):
    scheme = {"scheme": "BIO", "tags": ["O", "B-PER", "I-PER"], "corpus_scheme": "BIO", "splitter": "unicode"}
    counts = {"window": 64, "stride": 16, "splits": {}, "split_off": {}, "ledger": {}, "duplicates": {}}
    return ShardsInfo(**({"encoder": "e", "tokenizer_fingerprint": "f"} | scheme | counts | facts))
