"""What a trained model is good for: retrieval, classification, pictures of reconstructions."""
