"""What a change of the weights can do to the outputs, proven along the graph."""
