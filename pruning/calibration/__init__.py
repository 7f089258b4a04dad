"""What every neuron does on a task: the dense model runs along its own answers, forward and back."""
