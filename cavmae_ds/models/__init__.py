"""The model families; each is one file that ends in a PretrainOutput."""
