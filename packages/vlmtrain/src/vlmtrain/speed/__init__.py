"""What makes a training step fast without changing what it learns.

Attention over pictures of any size in one call, rows packed without padding, loss computed only where there is some,
activations recomputed only as far as memory asks for it, and the time of a step measured.
"""
