"""Records for people: TensorBoard, JSON lines, the terminal."""
