"""What a training step through a mixture of remote experts costs."""
