"""What the ops around the experts cost."""
