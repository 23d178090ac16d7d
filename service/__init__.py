"""Serve sparse, 8-bit BERT artifacts over HTTP: tokenize, batch, run the engine, answer."""
