"""What a task used, and the receipt both sides keep."""
