"""Speed and memory, measured here: training steps of a configuration, and forward passes of models."""
