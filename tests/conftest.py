"""Settings of the whole test suite."""

import torch
from hypothesis import settings

# No deadline: how long an example takes is the machine's business, not the code's.
settings.register_profile("secateur", deadline=None, max_examples=60)
settings.load_profile("secateur")

# The networks are so small that a second thread costs more than it brings.
torch.set_num_threads(1)
