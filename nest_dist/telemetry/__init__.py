"""What a person watches: TensorBoard, JSON lines, the terminal."""
