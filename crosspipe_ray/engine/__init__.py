"""What runs a plan on one rank: stage, split backward, interpreter, transports. Never Ray."""
