"""The masked autoencoder: masking, embedding, blocks, and the model that puts them together."""
