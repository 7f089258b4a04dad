"""What an operator sees: metrics, traces, the live view, energy."""
