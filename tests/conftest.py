"""Settings of the whole test suite."""

import signal

import torch
from hypothesis import settings

# No deadline: how long an example takes is the machine's business, not the code's.
settings.register_profile("secateur", deadline=None, max_examples=60)
settings.load_profile("secateur")

# The networks are so small that a second thread costs more than it brings.
torch.set_num_threads(1)

# A shell makes what it starts in the background deaf to Ctrl-C, and so every program that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
