"""Make a dense BERT into a sparse, 8-bit artifact: teacher, prune, quantize, export, evaluate."""
