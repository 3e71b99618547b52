"""What is trained and on what: the model, its data, its optimizer, and the driver of a run."""
