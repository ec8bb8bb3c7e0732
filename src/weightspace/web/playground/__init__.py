"""The engine of the playground: networks with two inputs and one output, in messages and frames."""
