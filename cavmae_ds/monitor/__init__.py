"""What people watch: curves, pictures and texts in TensorBoard, log.jsonl for programs, one progress line."""
