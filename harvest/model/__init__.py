"""The language model of a harvest: its files, tokenizer and weights, hook points, and the forward to rows."""
