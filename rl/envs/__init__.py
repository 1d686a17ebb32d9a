"""What is acted on: environments, and the door between them and tensors."""
