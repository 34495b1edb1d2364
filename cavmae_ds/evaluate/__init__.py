"""What a pretrained model is good for: retrieval, pictures of reconstructions."""
